package orders;

import com.fasterxml.jackson.core.JsonParseException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.MapperFeature;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.PropertyNamingStrategies;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.datatype.jsr310.JavaTimeModule;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import org.apache.kafka.common.utils.Utils;

/** Decodes commands in JSON or Avro, and checks their ids, key and partition. Not thread-safe. */
final class CommandDecoder {
    private static final int MAX_BYTES = 5 * 1024 * 1024;

    private final ObjectReader json = JsonMapper.builder()
        .propertyNamingStrategy(PropertyNamingStrategies.SNAKE_CASE)
        .addModule(new JavaTimeModule())
        .disable(MapperFeature.ALLOW_COERCION_OF_SCALARS)
        .disable(DeserializationFeature.ACCEPT_FLOAT_AS_INT)
        .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
        .build().readerFor(Command.class);
    private final AvroReader avro = new AvroReader();
    private final Map<Integer, String> types = new HashMap<>();

    /** A record that is not a command, with the reason of its dead letter. */
    static final class NotACommand extends Exception {
        private static final long serialVersionUID = 1;

        private final String reason;

        NotACommand(String reason, String detail) {
            super(detail);
            this.reason = reason;
        }

        String reason() {
            return reason;
        }
    }

    CommandDecoder(Contract contract) {
        contract.schemas().forEach((type, id) -> types.put(id, type));
    }

    Command decode(byte[] value) throws NotACommand {
        if (value == null || value.length == 0) {
            throw new NotACommand("empty", "the record has no value");
        }
        if (value.length > MAX_BYTES) {
            throw new NotACommand("too_large", value.length + " bytes, at most " + MAX_BYTES);
        }
        Command command = switch (value[0]) {
            case 0 -> fromAvro(value);
            case '{' -> fromJson(value);
            default -> throw new NotACommand("unknown_format", "the first byte is neither 0 (Avro) nor { (JSON)");
        };
        String correlationId = command.correlationId();
        if (!Validation.isId(command.commandId()) || !Validation.isId(command.orderId())
            || correlationId != null && !Validation.isForeignId(correlationId)) {
            throw new NotACommand("bad_shape", "an id is out of range");
        }
        return command;
    }

    private Command fromJson(byte[] value) throws NotACommand {
        try {
            return json.readValue(value);
        } catch (JsonParseException error) {
            throw new NotACommand("not_json", error.getOriginalMessage());
        } catch (IOException error) {
            throw new NotACommand("bad_shape", error.getClass().getSimpleName());
        }
    }

    private Command fromAvro(byte[] value) throws NotACommand {
        if (value.length < 5) {
            throw new NotACommand("not_avro", "expected byte 0 and a schema id of 4 bytes");
        }
        String type = types.get(ByteBuffer.wrap(value, 1, 4).getInt());
        if (type == null) {
            throw new NotACommand("unknown_schema", "the schema id is unknown");
        }
        try {
            return avro.command(type, value);
        } catch (IOException | RuntimeException error) {  // Avro throws both for damaged bytes
            throw new NotACommand("not_avro", error.getClass().getSimpleName());
        }
    }

    static void checkKey(byte[] key, String orderId, int partition, int partitions) throws NotACommand {
        if (key == null) {
            throw new NotACommand("key_missing", "the record has no key");
        }
        if (!orderId.equals(new String(key, StandardCharsets.UTF_8))) {
            throw new NotACommand("key_mismatch", "the record's key differs from the command's order_id");
        }
        if (Utils.toPositive(Utils.murmur2(key)) % partitions != partition) {
            throw new NotACommand("wrong_partition", "the record's key belongs to another partition");
        }
    }
}
