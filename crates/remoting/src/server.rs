//! Accepts connections and runs the engine on each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use env::Env;
use tokio::sync::watch;

use crate::connection::{Connection, Handler};
use crate::limits::Limits;

/// A listening server. Dropping it stops it as [`Server::stop`] does.
#[derive(Debug)]
pub struct Server {
    local: SocketAddr,
    connections: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Listens on `address` (port 0 = any) and serves until stopped.
    pub async fn start<H: Handler>(
        env: &Env,
        address: SocketAddr,
        limits: Limits,
        handler: Arc<H>,
    ) -> io::Result<Server> {
        let listener = env.net.listen(address).await?;
        let local = listener.local_addr()?;
        let connections = Arc::new(AtomicUsize::new(0));
        let (stop, mut stopped) = watch::channel(false);
        let (env, open) = (env.clone(), connections.clone());
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = stop_wanted(&mut stopped) => return,
                    accepted = listener.accept() => accepted,
                };
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors, most likely: the ones in use must be given back first.
                        tracing::warn!(%local, %error, "cannot accept a connection; trying again shortly");
                        env.clock.sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                let Ok(connection) = Connection::new(&stream, env.clock.clone(), limits.frame) else { continue };
                if open.fetch_add(1, Ordering::Relaxed) >= limits.connections {
                    open.fetch_sub(1, Ordering::Relaxed);
                    tracing::warn!(%local, peer = %connection.peer_addr(), limit = limits.connections, "too many connections; this one is closed");
                    continue;
                }
                let (handler, limits, open, mut stopped) =
                    (handler.clone(), limits.clone(), open.clone(), stopped.clone());
                tokio::spawn(async move {
                    let peer = connection.peer_addr();
                    let handle = connection.clone();
                    let run = connection.run(stream, handler, &limits);
                    tokio::pin!(run);
                    let ended = tokio::select! {
                        biased;
                        () = stop_wanted(&mut stopped) => None,
                        ended = &mut run => Some(ended),
                    };
                    let ended = match ended {
                        Some(ended) => ended,
                        None => {
                            handle.close();
                            run.await
                        }
                    };
                    if let Err(reason) = ended {
                        tracing::debug!(%peer, %reason, "connection closed");
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Server { local, connections, stop })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Stops listening and closes every connection; requests in the works are dropped.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Resolves when the server is to stop or is gone.
async fn stop_wanted(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
