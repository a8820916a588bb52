package orders;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.Map;
import orders.Order.Contents;
import orders.Order.Known;
import orders.Order.Line;
import orders.Outcome.Event;
import orders.Outcome.Rejection;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;

/** Writes messages field by field as their newest schemas say, and orders for the store. Not thread-safe. */
final class AvroWriter {
    private final ByteArrayOutputStream bytes = new ByteArrayOutputStream(1024);
    private BinaryEncoder out;

    private interface Body {
        void write() throws IOException;
    }

    /** Returns an event in the Confluent wire format. */
    byte[] event(Event event, int schemaId) {
        return written(() -> {
            head(schemaId);
            out.writeString(event.eventId());
            out.writeString(event.orderId());
            out.writeLong(event.version());
            out.writeString(event.commandId());
            out.writeFixed(event.commandDigest());
            text(event.correlationId());
            out.writeString(event.actor());
            out.writeLong(event.occurredAt());
            if (isPresent(event.previousDigest())) {
                out.writeFixed(event.previousDigest());
            }
            fact(event.fact());
        });
    }

    private void fact(Fact fact) throws IOException {
        if (fact.contents() != null) {
            contents(fact.contents());
        } else if (fact instanceof Fact.Paid paid) {
            out.writeString(paid.paymentId());
            out.writeLong(paid.amount());
            out.writeString(paid.currency());
        } else if (fact instanceof Fact.Shipped shipped) {
            out.writeString(shipped.carrier());
            out.writeString(shipped.trackingNumber());
        } else if (fact instanceof Fact.Cancelled cancelled) {
            out.writeString(cancelled.reason());
            text(cancelled.note());
            out.writeLong(cancelled.refundDue());
        }
    }

    /** Returns a rejection in the Confluent wire format. */
    byte[] rejection(Rejection rejection, int schemaId) {
        return written(() -> {
            head(schemaId);
            out.writeString(rejection.rejectionId());
            out.writeString(rejection.commandId());
            out.writeFixed(rejection.commandDigest());
            out.writeString(rejection.commandType());
            out.writeString(rejection.orderId());
            out.writeString(rejection.reason());
            out.writeString(rejection.detail());
            out.writeString(rejection.status());
            out.writeLong(rejection.version());
            out.writeString(rejection.actor());
            out.writeLong(rejection.rejectedAt());
            text(rejection.correlationId());
            text(rejection.pointer());
        });
    }

    /** Returns an order for the store. */
    byte[] order(Order order) {
        return written(() -> {
            out.writeEnum(order.status().ordinal());
            out.writeString(order.userId());
            out.writeLong(order.total());
            if (isPresent(order.contents())) {
                contents(order.contents());
            }
            out.writeLong(order.createdAt());
            out.writeLong(order.changedAt());
            out.writeFixed(order.head());
            known(order.accepted());
            known(order.refused());
        });
    }

    private void contents(Contents contents) throws IOException {
        out.writeString(contents.userId());
        out.writeString(contents.currency());
        out.writeArrayStart();
        out.setItemCount(contents.lines().size());
        for (Line line : contents.lines()) {
            out.writeString(line.lineId());
            out.writeString(line.sku());
            text(line.name());
            out.writeLong(line.quantity());
            out.writeLong(line.unitPrice());
        }
        out.writeArrayEnd();
        out.writeLong(contents.discount());
        out.writeLong(contents.tax());
        out.writeLong(contents.shipping());
        out.writeLong(contents.total());
        text(contents.shippingAddressRef());
        out.writeMapStart();
        out.setItemCount(contents.metadata().size());
        for (Map.Entry<String, String> entry : contents.metadata().entrySet()) {
            out.writeString(entry.getKey());
            out.writeString(entry.getValue());
        }
        out.writeMapEnd();
    }

    private void known(List<Known> all) throws IOException {
        out.writeArrayStart();
        out.setItemCount(all.size());
        for (Known known : all) {
            out.writeString(known.commandId());
            out.writeFixed(known.digest());
        }
        out.writeArrayEnd();
    }

    private void head(int schemaId) throws IOException {
        out.writeFixed(ByteBuffer.allocate(5).put((byte) 0).putInt(schemaId).array());
    }

    private void text(String text) throws IOException {
        if (isPresent(text)) {
            out.writeString(text);
        }
    }

    /** Writes the branch of a union with null. */
    private boolean isPresent(Object value) throws IOException {
        out.writeIndex(value == null ? 0 : 1);
        return value != null;
    }

    private byte[] written(Body body) {
        try {
            bytes.reset();
            out = EncoderFactory.get().binaryEncoder(bytes, out);
            body.write();
            out.flush();
            return bytes.toByteArray();
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }
}
