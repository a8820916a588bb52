package orders;

import java.io.IOException;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serializer;

/** The orders of the store as bytes; one per thread. */
final class OrderSerde implements Serde<Order> {
    private final AvroWriter writer = new AvroWriter();
    private final AvroReader reader = new AvroReader();

    @Override
    public Serializer<Order> serializer() {
        return (topic, order) -> order == null ? null : writer.order(order);
    }

    @Override
    public Deserializer<Order> deserializer() {
        return (topic, value) -> value == null ? null : read(value);
    }

    private Order read(byte[] value) {
        try {
            return reader.order(value);
        } catch (IOException error) {
            throw new SerializationException(error);
        }
    }
}
