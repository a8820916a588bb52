package orders;

import static java.util.Objects.requireNonNull;

import com.fasterxml.jackson.annotation.JsonSubTypes;
import com.fasterxml.jackson.annotation.JsonSubTypes.Type;
import com.fasterxml.jackson.annotation.JsonTypeInfo;
import com.fasterxml.jackson.annotation.JsonTypeName;
import java.time.Instant;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** A command, with null for each optional field that is not set. */
@JsonTypeInfo(use = JsonTypeInfo.Id.NAME, property = "type")
@JsonSubTypes({
    @Type(Command.CreateOrder.class), @Type(Command.AmendOrder.class), @Type(Command.PayOrder.class),
    @Type(Command.ShipOrder.class), @Type(Command.DeliverOrder.class), @Type(Command.CancelOrder.class)})
sealed interface Command {
    String commandId();

    String orderId();

    String actor();

    Long expectedVersion();

    Instant decideBy();

    String correlationId();

    /** Adds the fields of this type of command that are not at their default, in their order. */
    void addTo(Fields fields);

    default String type() {
        return getClass().getSimpleName();
    }

    /** Returns what the digest of the command is made from. */
    default Map<String, Object> fields() {
        Fields fields = new Fields();
        fields.add("type", type()).add("command_id", commandId()).add("order_id", orderId()).add("actor", actor())
            .add("expected_version", expectedVersion());
        addTo(fields);
        return fields;
    }

    record Line(String lineId, String sku, String name, Long quantity, Long unitPrice) {
        public Line {
            required(sku, quantity, unitPrice);
        }

        private Map<String, Object> fields() {
            return new Fields().add("line_id", lineId).add("sku", sku).add("name", name).add("quantity", quantity)
                .add("unit_price", unitPrice);
        }
    }

    @JsonTypeName("CreateOrder")
    record CreateOrder(
        String commandId, String orderId, String actor, Long expectedVersion, Instant decideBy, String correlationId,
        String userId, String currency, List<Line> lines, Long discount, Long tax, Long shipping,
        String shippingAddressRef, Map<String, String> metadata) implements Command {
        public CreateOrder {
            required(commandId, orderId, actor, userId, currency, lines);
            discount = discount == null ? 0 : discount;
            tax = tax == null ? 0 : tax;
            shipping = shipping == null ? 0 : shipping;
            metadata = metadata == null ? Map.of() : metadata;
        }

        @Override
        public void addTo(Fields fields) {
            fields.add("user_id", userId).add("currency", currency).addLines(lines)
                .add("discount", nonZero(discount)).add("tax", nonZero(tax)).add("shipping", nonZero(shipping))
                .add("shipping_address_ref", shippingAddressRef).addMetadata(metadata.isEmpty() ? null : metadata);
        }

        private static Long nonZero(Long amount) {
            return amount == 0 ? null : amount;
        }
    }

    @JsonTypeName("AmendOrder")
    record AmendOrder(
        String commandId, String orderId, String actor, Long expectedVersion, Instant decideBy, String correlationId,
        List<Line> lines, Long discount, Long tax, Long shipping, String shippingAddressRef,
        Map<String, String> metadata) implements Command {
        public AmendOrder {
            required(commandId, orderId, actor);
        }

        @Override
        public void addTo(Fields fields) {
            fields.addLines(lines).add("discount", discount).add("tax", tax).add("shipping", shipping)
                .add("shipping_address_ref", shippingAddressRef).addMetadata(metadata);
        }
    }

    @JsonTypeName("PayOrder")
    record PayOrder(
        String commandId, String orderId, String actor, Long expectedVersion, Instant decideBy, String correlationId,
        String paymentId, Long amount, String currency) implements Command {
        public PayOrder {
            required(commandId, orderId, actor, paymentId, amount, currency);
        }

        @Override
        public void addTo(Fields fields) {
            fields.add("payment_id", paymentId).add("amount", amount).add("currency", currency);
        }
    }

    @JsonTypeName("ShipOrder")
    record ShipOrder(
        String commandId, String orderId, String actor, Long expectedVersion, Instant decideBy, String correlationId,
        String carrier, String trackingNumber) implements Command {
        public ShipOrder {
            required(commandId, orderId, actor, carrier, trackingNumber);
        }

        @Override
        public void addTo(Fields fields) {
            fields.add("carrier", carrier).add("tracking_number", trackingNumber);
        }
    }

    @JsonTypeName("DeliverOrder")
    record DeliverOrder(
        String commandId, String orderId, String actor, Long expectedVersion, Instant decideBy, String correlationId)
        implements Command {
        public DeliverOrder {
            required(commandId, orderId, actor);
        }

        @Override
        public void addTo(Fields fields) {}
    }

    @JsonTypeName("CancelOrder")
    record CancelOrder(
        String commandId, String orderId, String actor, Long expectedVersion, Instant decideBy, String correlationId,
        String reason, String note) implements Command {
        public CancelOrder {
            required(commandId, orderId, actor, reason);
        }

        @Override
        public void addTo(Fields fields) {
            fields.add("reason", reason).add("note", note);
        }
    }

    /** The fields of a command that are set, by name. */
    final class Fields extends LinkedHashMap<String, Object> {
        private static final long serialVersionUID = 1;

        private Fields add(String name, Object value) {
            if (value != null) {
                put(name, value);
            }
            return this;
        }

        private Fields addLines(List<Line> lines) {
            return add("lines", lines == null ? null : lines.stream().map(Line::fields).toList());
        }

        private Fields addMetadata(Map<String, String> metadata) {
            return add("metadata", metadata == null ? null : new TreeMap<>(metadata));
        }
    }

    private static void required(Object... values) {
        for (Object value : values) {
            requireNonNull(value, "a required field is missing");
        }
    }
}
