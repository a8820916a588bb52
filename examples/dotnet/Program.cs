// Prints every order event, from the first one on.
// Arguments: a Kafka broker, the address of a schema registry, and the topic, if it is not orders.events.v1.

using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Avro.Generic;
using Avro.IO;
using Confluent.Kafka;

var (servers, registry) = (args[0], args[1]);
var topic = args.Length > 2 ? args[2] : "orders.events.v1";
var readers = new Dictionary<int, GenericDatumReader<GenericRecord>>(); // by schema id
var versions = new Dictionary<string, long>(); // by order; keep them with your own data instead
using var http = new HttpClient { Timeout = TimeSpan.FromSeconds(10) };
using var stopping = new CancellationTokenSource();
using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);

var config = new ConsumerConfig
{
    BootstrapServers = servers,
    GroupId = Environment.GetEnvironmentVariable("GROUP") ?? "dotnet-example",
    IsolationLevel = IsolationLevel.ReadCommitted, // an event that is not committed never happened
    AutoOffsetReset = AutoOffsetReset.Earliest,
    EnableAutoOffsetStore = false, // what is stored below is committed every 5 s, and once more by Close
};
using var consumer = new ConsumerBuilder<string, byte[]>(config)
    // What another member of the group reads meanwhile, we do not see: what comes back may be at any version.
    .SetPartitionsRevokedHandler((_, _) => versions.Clear()) // also called for what is lost
    .Build();
consumer.Subscribe(topic);
try
{
    while (true)
    {
        var result = consumer.Consume(stopping.Token);
        await Take(result.Message);
        consumer.StoreOffset(result); // after the work: what a crash leaves out comes again
    }
}
catch (OperationCanceledException) when (stopping.IsCancellationRequested)
{
    // stopped between two records
}
finally
{
    consumer.Close();
}

void Stop(PosixSignalContext signal)
{
    signal.Cancel = true; // the loop ends, not the process
    stopping.Cancel();
}

async Task Take(Message<string, byte[]> message) // byte 0, the id of a schema in four bytes, then Avro
{
    if (message.Value[0] != 0)
    {
        throw new InvalidDataException("not in the wire format");
    }
    var reader = await ReaderOf(BinaryPrimitives.ReadInt32BigEndian(message.Value.AsSpan(1, 4)));
    using var body = new MemoryStream(message.Value, 5, message.Value.Length - 5);
    var record = reader.Read(null!, new BinaryDecoder(body));
    var version = (long)record["version"];
    var last = versions.GetValueOrDefault(message.Key);
    if (version <= last)
    {
        return; // a repeat
    }
    if (last > 0 && version != last + 1)
    {
        throw new InvalidDataException($"{message.Key} goes from version {last} to {version}");
    }
    versions[message.Key] = version;
    Console.WriteLine($"{message.Key} {version} {record.Schema.Name}");
}

async Task<GenericDatumReader<GenericRecord>> ReaderOf(int id)
{
    if (!readers.TryGetValue(id, out var reader))
    {
        var schema = Avro.Schema.Parse(await http.GetStringAsync($"{registry}/schemas/ids/{id}/schema"));
        readers[id] = reader = new GenericDatumReader<GenericRecord>(schema, schema); // newer ones may have more fields
    }
    return reader;
}
