package orders;

import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;

/** Runs the order service on Kafka Streams until it is told to end. Its settings are system properties. */
final class Main {
    private Main() {}

    public static void main(String[] args) throws IOException {
        Contract contract = Contract.read(Path.of(setting("contract")));
        KafkaStreams streams = new KafkaStreams(topology(contract), properties());
        streams.setStateListener((now, before) -> System.out.println(now));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(5))));
        streams.start();
    }

    private static Topology topology(Contract contract) {
        int partitions = Integer.parseInt(setting("partitions"));
        boolean isOnDisk = setting("store").equals("rocksdb");
        ByteArraySerializer bytes = new ByteArraySerializer();
        return new Topology()
            .addSource("commands", new ByteArrayDeserializer(), new ByteArrayDeserializer(), setting("commands"))
            .addProcessor("orders", OrderProcessor.supplier(contract, partitions, isOnDisk), "commands")
            .addSink("events", setting("events"), bytes, bytes, "orders")
            .addSink("rejections", setting("rejections"), bytes, bytes, "orders")
            .addSink("dead-letters", setting("dead_letters"), bytes, bytes, "orders");
    }

    private static Properties properties() {
        Properties properties = new Properties();
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, setting("app_id"));
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, setting("bootstrap_servers"));
        properties.put(StreamsConfig.STATE_DIR_CONFIG, setting("state_dir"));
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        properties.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, setting("commit_interval_ms"));
        properties.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        return properties;
    }

    private static String setting(String name) {
        String value = System.getProperty(name);
        if (value == null) {
            throw new IllegalArgumentException("the system property " + name + " is not set");
        }
        return value;
    }
}
