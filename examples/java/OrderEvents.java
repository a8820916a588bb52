import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericDatumReader;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.io.DecoderFactory;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Prints every order event, from the first one on.
 *
 * <p>Arguments: a Kafka broker, the address of a schema registry, and the topic, if it is not orders.events.v1.
 */
public class OrderEvents {
    private static final HttpClient HTTP = HttpClient.newHttpClient();
    private static final Map<Integer, Schema> SCHEMAS = new HashMap<>();
    private static final Map<String, Long> VERSIONS = new HashMap<>(); // keep them with your own data instead
    private static volatile boolean stopping;

    public static void main(String[] arguments) throws IOException, InterruptedException {
        System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "warn"); // Kafka's client says a lot
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", arguments[0],
            "group.id", System.getenv().getOrDefault("GROUP", "java-example"),
            "isolation.level", "read_committed", // an event that is not committed never happened
            "auto.offset.reset", "earliest",
            "enable.auto.commit", false,
            "allow.auto.create.topics", false); // a mistyped name is no reason to make a topic
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(arguments.length > 2 ? arguments[2] : "orders.events.v1"), new Forget());
            finishWhenStopped(Thread.currentThread());
            while (!stopping) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    take(record, arguments[1]);
                }
                consumer.commitSync(); // after the work: what a crash leaves out comes again
            }
        }
    }

    /** What another member of the group reads meanwhile, we do not see: what comes back may be at any version. */
    private static class Forget implements ConsumerRebalanceListener {
        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
            VERSIONS.clear();
        }

        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
            // reading goes on at what is committed
        }
    }

    /** Let a signal end the loop between two commits: a consumer that leaves its group is not waited for. */
    private static void finishWhenStopped(Thread main) {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopping = true;
            try {
                main.join();
            } catch (InterruptedException error) {
                Thread.currentThread().interrupt();
            }
        }));
    }

    private static void take(ConsumerRecord<String, byte[]> record, String registry)
            throws IOException, InterruptedException {
        GenericRecord event = decode(record.value(), registry);
        long version = (Long) event.get("version");
        long last = VERSIONS.getOrDefault(record.key(), 0L);
        if (version <= last) {
            return; // a repeat
        }
        if (last > 0 && version != last + 1) {
            throw new IllegalStateException(record.key() + " goes from version " + last + " to " + version);
        }
        VERSIONS.put(record.key(), version);
        System.out.printf("%s %d %s%n", record.key(), version, event.getSchema().getName());
    }

    /** Byte 0, the id of a schema in four bytes, then Avro. */
    private static GenericRecord decode(byte[] value, String registry) throws IOException, InterruptedException {
        var bytes = ByteBuffer.wrap(value);
        if (bytes.get() != 0) {
            throw new IOException("not in the wire format");
        }
        Schema schema = schema(bytes.getInt(), registry);
        var decoder = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, null);
        return new GenericDatumReader<GenericRecord>(schema).read(null, decoder);
    }

    private static Schema schema(int id, String registry) throws IOException, InterruptedException {
        if (!SCHEMAS.containsKey(id)) {
            var request = HttpRequest.newBuilder(URI.create(registry + "/schemas/ids/" + id + "/schema"))
                .timeout(Duration.ofSeconds(10))
                .build();
            var answer = HTTP.send(request, BodyHandlers.ofString());
            if (answer.statusCode() != 200) {
                throw new IOException("the registry does not know schema " + id + ": " + answer.body());
            }
            SCHEMAS.put(id, new Schema.Parser().parse(answer.body()));
        }
        return SCHEMAS.get(id);
    }
}
