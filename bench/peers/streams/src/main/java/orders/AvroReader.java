package orders;

import java.io.IOException;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import orders.Order.Contents;
import orders.Order.Known;
import orders.Order.Status;
import org.apache.avro.io.BinaryDecoder;
import org.apache.avro.io.DecoderFactory;

/** Reads commands field by field as their schemas say, and orders of the store. Not thread-safe. */
final class AvroReader {
    private static final Status[] STATUSES = Status.values();

    private BinaryDecoder in;

    private interface Read<T> {
        T read() throws IOException;
    }

    /** Returns a command of this type, whose value has a head of 5 bytes. */
    Command command(String type, byte[] value) throws IOException {
        in = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, in);
        Command command = command(type);
        if (!in.isEnd()) {
            throw new IOException("trailing bytes");
        }
        return command;
    }

    private Command command(String type) throws IOException {
        String id = in.readString();
        String orderId = in.readString();
        String actor = in.readString();
        Long version = optional(in::readLong);
        Instant decideBy = optional(() -> Instant.ofEpochMilli(in.readLong()));
        String correlationId = optional(in::readString);
        return switch (type) {
            case "CreateOrder" -> new Command.CreateOrder(id, orderId, actor, version, decideBy, correlationId,
                in.readString(), in.readString(), array(this::commandLine), in.readLong(), in.readLong(),
                in.readLong(), optional(in::readString), map());
            case "AmendOrder" -> new Command.AmendOrder(id, orderId, actor, version, decideBy, correlationId,
                optional(() -> array(this::commandLine)), optional(in::readLong), optional(in::readLong),
                optional(in::readLong), optional(in::readString), optional(this::map));
            case "PayOrder" -> new Command.PayOrder(id, orderId, actor, version, decideBy, correlationId,
                in.readString(), in.readLong(), in.readString());
            case "ShipOrder" -> new Command.ShipOrder(id, orderId, actor, version, decideBy, correlationId,
                in.readString(), in.readString());
            case "DeliverOrder" -> new Command.DeliverOrder(id, orderId, actor, version, decideBy, correlationId);
            case "CancelOrder" -> new Command.CancelOrder(id, orderId, actor, version, decideBy, correlationId,
                in.readString(), optional(in::readString));
            default -> throw new IOException(type + " is not a command");
        };
    }

    private Command.Line commandLine() throws IOException {
        return new Command.Line(
            optional(in::readString), in.readString(), optional(in::readString), in.readLong(), in.readLong());
    }

    /** Returns an order of the store. */
    Order order(byte[] value) throws IOException {
        in = DecoderFactory.get().binaryDecoder(value, in);
        return new Order(
            STATUSES[in.readEnum()], in.readString(), in.readLong(), optional(this::contents), in.readLong(),
            in.readLong(), digest(), array(this::known), array(this::known));
    }

    private Contents contents() throws IOException {
        return new Contents(
            in.readString(), in.readString(), array(this::line), in.readLong(), in.readLong(), in.readLong(),
            in.readLong(), optional(in::readString), map());
    }

    private Order.Line line() throws IOException {
        return new Order.Line(
            in.readString(), in.readString(), optional(in::readString), in.readLong(), in.readLong());
    }

    private Known known() throws IOException {
        return new Known(in.readString(), digest());
    }

    private byte[] digest() throws IOException {
        byte[] digest = new byte[16];
        in.readFixed(digest);
        return digest;
    }

    private <T> T optional(Read<T> read) throws IOException {
        return switch (in.readIndex()) {
            case 0 -> null;
            case 1 -> read.read();
            default -> throw new IOException("a union index is out of range");
        };
    }

    private <T> List<T> array(Read<T> read) throws IOException {
        List<T> items = new ArrayList<>();
        for (long count = in.readArrayStart(); count > 0; count = in.arrayNext()) {
            for (long i = 0; i < count; i++) {
                items.add(read.read());
            }
        }
        return items;
    }

    private Map<String, String> map() throws IOException {
        Map<String, String> entries = new LinkedHashMap<>();
        for (long count = in.readMapStart(); count > 0; count = in.mapNext()) {
            for (long i = 0; i < count; i++) {
                entries.put(in.readString(), in.readString());
            }
        }
        return entries;
    }
}
