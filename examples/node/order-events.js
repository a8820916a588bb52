// Prints every order event, from the first one on.
// Arguments: a Kafka broker, the address of a schema registry, and the topic, if it is not orders.events.v1.

import avro from 'avsc'
import { Kafka, logLevel } from 'kafkajs'

const [servers, registry, topic = 'orders.events.v1'] = process.argv.slice(2)
const types = new Map() // by schema id
const versions = new Map() // by order; keep them with your own data instead

// A number of JavaScript is exact to 2^53 - 1 only, and an amount may be 2^53: what Avro calls long becomes a BigInt.
const long = avro.types.LongType.__with({
  fromBuffer: (buffer) => buffer.readBigInt64LE(),
  toBuffer: (value) => Buffer.from(BigInt64Array.of(value).buffer),
  fromJSON: BigInt,
  toJSON: String,
  isValid: (value) => typeof value === 'bigint',
  compare: (one, other) => (one > other) - (one < other)
})

async function typeOf(id) {
  if (!types.has(id)) {
    const answer = await fetch(`${registry}/schemas/ids/${id}/schema`, { signal: AbortSignal.timeout(10_000) })
    if (!answer.ok) throw new Error(`the registry does not know schema ${id}: ${await answer.text()}`)
    types.set(id, avro.Type.forSchema(await answer.json(), { registry: { long } }))
  }
  return types.get(id)
}

async function take({ value }) { // byte 0, the id of a schema in four bytes, then Avro
  if (value[0] !== 0) throw new Error('not in the wire format')
  const type = await typeOf(value.readUInt32BE(1)) // the schema that it was written with: newer ones may have more fields
  const event = type.fromBuffer(value.subarray(5))
  const last = versions.get(event.order_id)
  if (event.version <= last) return // a repeat
  if (last !== undefined && event.version !== last + 1n) {
    throw new Error(`${event.order_id} goes from version ${last} to ${event.version}`)
  }
  versions.set(event.order_id, event.version)
  console.log(`${event.order_id} ${event.version} ${type.name.split('.').pop()}`)
}

function giveUp(error) { // the client would try the same record for ever
  console.error(error)
  process.exit(1)
}

const kafka = new Kafka({ brokers: servers.split(','), logLevel: logLevel.WARN })
const consumer = kafka.consumer({
  groupId: process.env.GROUP ?? 'node-example',
  readUncommitted: false, // an event that is not committed never happened
  maxWaitTimeInMs: 500, // for records, so it is also what Ctrl-C waits
  allowAutoTopicCreation: false // nor is a topic made by a slip of the pen
})
consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || giveUp(payload.error))
// What another member of the group read meanwhile, we did not see: what comes back may be at any version.
consumer.on(consumer.events.GROUP_JOIN, () => versions.clear())
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => consumer.disconnect().catch(giveUp))
await consumer.connect()
await consumer.subscribe({ topic, fromBeginning: true })
// It commits its offsets after the work, run by run: what a crash leaves out comes again.
await consumer.run({ eachMessage: ({ message }) => take(message).catch(giveUp) })
