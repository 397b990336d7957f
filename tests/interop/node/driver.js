'use strict';
// Drives the unmodified Node client: `produce` or `consume`, options as in tests/interop/README.md.
// Every client stays connected until its standard input ends, so that the caller decides when it has seen enough.

const { Consumer, Producer, Message } = require('ali-ons');

const ASYNC_IN_FLIGHT = 32;
const FLAGS = new Set(['keys', 'orderly']);

function parse([verb, ...words]) {
  const options = { verb, group: 'interop-producer', mode: 'sync', model: 'clustering', tag: '*', prefix: '' };
  for (let i = 0; i < words.length; i++) {
    const name = words[i].replace(/^--/, '');
    options[name] = FLAGS.has(name) ? true : words[++i];
  }
  for (const name of ['first', 'count', 'delay-level', 'fail-times', 'max-reconsume']) {
    if (options[name] !== undefined) options[name] = Number(options[name]);
  }
  return options;
}

const line = (event, members) => process.stdout.write(`${JSON.stringify({ event, ...members })}\n`);

function fail(error) {
  process.stdout.write(`${JSON.stringify({ event: 'error', error: String(error) })}\n`, () => process.exit(1));
}

function untilInputEnds() {
  return new Promise(resolve => process.stdin.resume().on('end', resolve));
}

// The client wants an HTTP client for looking NameServers up; with `nameSrv` given it never calls it.
const common = options => ({
  nameSrv: options.namesrv,
  httpclient: { request: () => Promise.reject(new Error('no lookup expected')) },
  logger: { debug() {}, info() {}, warn: console.error, error: console.error },
});

const body = (options, n) => `${options.prefix}-${n}`;

function message(options, n) {
  const tags = (options.tags || '').split(',');
  const tag = tags[n % tags.length];
  const result = tag ? new Message(options.topic, tag, body(options, n)) : new Message(options.topic, body(options, n));
  if (!tag) delete result.properties.TAGS; // the constructor would send the text "null"
  if (options.keys) result.keys = [`key-${body(options, n)}`];
  if (options['delay-level']) result.delayTimeLevel = options['delay-level'];
  return result;
}

async function produce(options) {
  const window = { sync: 1, async: ASYNC_IN_FLIGHT }[options.mode];
  if (!window || options.shards) throw new Error(`the client has no such send: ${options.shards ? 'by shard' : options.mode}`);
  const producer = new Producer({ ...common(options), producerGroup: options.group });
  producer.on('error', error => console.error(error));
  await producer.ready();
  const end = (options.first || 0) + (options.count || 1);
  let next = options.first || 0;
  const lane = async () => {
    while (next < end) {
      const n = next++;
      const at = Date.now();
      const result = await producer.send(message(options, n));
      const ok = result.sendStatus === 'SEND_OK';
      line(ok ? 'ack' : 'fail', {
        n, body: body(options, n), offset_id: result.msgId, queue: Number(result.messageQueue.queueId),
        offset: result.queueOffset, at, error: ok ? undefined : result.sendStatus,
      });
    }
  };
  await Promise.all(Array.from({ length: window }, lane));
  line('done');
  await untilInputEnds();
  await producer.close();
}

async function consume(options) {
  if (options.orderly) throw new Error('the client has no orderly consumer');
  const consumer = new Consumer({
    ...common(options),
    consumerGroup: options.group,
    isBroadcast: options.model === 'broadcasting',
    consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET',
    ...(options.instance ? { instanceName: options.instance } : {}),
    ...(options['max-reconsume'] >= 0 ? { maxReconsumeTimes: options['max-reconsume'] } : {}),
  });
  consumer.on('error', error => console.error(error.message));
  const failTimes = options['fail-times'] || 0;
  consumer.subscribe(options.topic, options.tag, async m => {
    line('message', {
      body: m.body.toString(), id: m.properties.UNIQ_KEY, offset_id: m.msgId, topic: m.topic, queue: m.queueId,
      offset: m.queueOffset, tag: m.tags || undefined, keys: m.keys, retry: m.reconsumeTimes, at: Date.now(),
    });
    // Not ACTION_RETRY: the client drops that answer for messages that are themselves retries.
    if (m.reconsumeTimes < failTimes) throw new Error(`attempt ${m.reconsumeTimes} must fail`);
  });
  await consumer.ready();
  line('ready');
  await untilInputEnds();
  await consumer.close();
}

const options = parse(process.argv.slice(2));
const run = { produce, consume }[options.verb];
if (run) {
  run(options).then(() => process.exit(0), fail);
} else {
  fail(new Error(`unknown command ${options.verb}`));
}
