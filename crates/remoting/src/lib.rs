//! Moves RemotingCommand frames over TCP; knows nothing of brokers.
