package orders;

import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Set;
import orders.Outcome.Event;
import orders.Outcome.Rejection;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.ProcessorSupplier;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueBytesStoreSupplier;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** Decides commands. Kafka Streams writes the outcome, the store's changelog and the offset in one transaction. */
final class OrderProcessor implements Processor<byte[], byte[], byte[], byte[]> {
    private static final String STORE = "orders";
    private static final DateTimeFormatter RFC3339 =
        DateTimeFormatter.ofPattern("yyyy-MM-dd'T'HH:mm:ss.SSS'Z'").withZone(ZoneOffset.UTC);

    private final Contract contract;
    private final int partitions;
    private final CommandDecoder decoder;
    private final Identity identity = new Identity();
    private final AvroWriter writer = new AvroWriter();
    private final Rules rules;
    private ProcessorContext<byte[], byte[]> context;
    private KeyValueStore<String, Order> orders;

    OrderProcessor(Contract contract, int partitions) {
        this.contract = contract;
        this.partitions = partitions;
        decoder = new CommandDecoder(contract);
        rules = new Rules(contract, identity);
    }

    /** Returns the supplier of processors, each with a store. */
    static ProcessorSupplier<byte[], byte[], byte[], byte[]> supplier(
        Contract contract, int partitions, boolean isOnDisk) {
        KeyValueBytesStoreSupplier bytes =
            isOnDisk ? Stores.persistentKeyValueStore(STORE) : Stores.inMemoryKeyValueStore(STORE);
        return new ProcessorSupplier<>() {
            @Override
            public Processor<byte[], byte[], byte[], byte[]> get() {
                return new OrderProcessor(contract, partitions);
            }

            @Override
            public Set<StoreBuilder<?>> stores() {
                return Set.of(Stores.keyValueStoreBuilder(bytes, Serdes.String(), new OrderSerde()));
            }
        };
    }

    @Override
    public void init(ProcessorContext<byte[], byte[]> context) {
        this.context = context;
        orders = context.getStateStore(STORE);
    }

    @Override
    public void process(Record<byte[], byte[]> record) {
        try {
            Command command = decoder.decode(record.value());
            CommandDecoder.checkKey(record.key(), command.orderId(), context.taskId().partition(), partitions);
            Order order = orders.get(command.orderId());
            rules.answer(command, order, context.currentSystemTimeMs())
                .ifPresent(outcome -> write(record, order, outcome));
        } catch (CommandDecoder.NotACommand error) {
            Headers headers = headers("dl_reason", error.reason(), "dl_detail", error.getMessage());
            forward("dead-letters", record, record.value(), context.currentSystemTimeMs(), headers);
        }
    }

    private void write(Record<byte[], byte[]> record, Order order, Outcome outcome) {
        if (outcome instanceof Event event) {
            String name = event.fact().schema();
            byte[] value = writer.event(event, contract.schemas().get(name));
            orders.put(event.orderId(), Order.after(order, event, identity.digest(value)));
            Headers headers = cloudEvent(name, event.eventId(), event.occurredAt(), event.orderId(), record.headers());
            forward("events", record, value, event.occurredAt(), headers);
        } else if (outcome instanceof Rejection rejection) {
            if (order != null && !contract.neverRemembered().contains(rejection.reason())) {
                orders.put(rejection.orderId(), order.after(rejection));
            }
            Headers headers = cloudEvent("Rejection", rejection.rejectionId(), rejection.rejectedAt(),
                rejection.orderId(), record.headers());
            byte[] value = writer.rejection(rejection, contract.schemas().get("Rejection"));
            forward("rejections", record, value, rejection.rejectedAt(), headers);
        }
    }

    private void forward(String sink, Record<byte[], byte[]> record, byte[] value, long time, Headers headers) {
        context.forward(new Record<>(record.key(), value, time, headers), sink);
    }

    private Headers cloudEvent(String type, String id, long time, String subject, Headers ofCommand) {
        long offset = context.recordMetadata().orElseThrow().offset();
        Headers headers = headers(
            "ce_specversion", "1.0", "ce_type", "orders.v1." + type, "ce_source", "/order-service",
            "content-type", "application/avro", "ce_id", id, "ce_time", RFC3339.format(Instant.ofEpochMilli(time)),
            "ce_subject", subject, "command_offset", String.valueOf(offset));
        Header traceparent = ofCommand.lastHeader("traceparent");
        return traceparent == null ? headers : headers.add(traceparent);
    }

    private static Headers headers(String... namesAndValues) {
        Headers headers = new RecordHeaders();
        for (int i = 0; i < namesAndValues.length; i += 2) {
            headers.add(namesAndValues[i], namesAndValues[i + 1].getBytes(StandardCharsets.UTF_8));
        }
        return headers;
    }
}
