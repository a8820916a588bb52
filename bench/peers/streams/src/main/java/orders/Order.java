package orders;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import orders.Outcome.Event;
import orders.Outcome.Rejection;

/**
 * What the store holds of one order: its state, the head of its history, and the commands that it remembers.
 *
 * @param contents null unless the status is CREATED; no later rule needs them
 */
record Order(
    Status status, String userId, long total, Contents contents, long createdAt, long changedAt, byte[] head,
    List<Known> accepted, List<Known> refused) {

    private static final int MAX_REFUSED = 16;

    enum Status { ABSENT, CREATED, PAID, SHIPPED, DELIVERED, CANCELLED }

    record Known(String commandId, byte[] digest) {}

    record Line(String lineId, String sku, String name, long quantity, long unitPrice) {}

    record Contents(
        String userId, String currency, List<Line> lines, long discount, long tax, long shipping, long total,
        String shippingAddressRef, Map<String, String> metadata) {}

    long version() {
        return accepted.size();
    }

    /** Returns the order after an event; {@code head} is the digest of the event's encoded value. */
    static Order after(Order order, Event event, byte[] head) {
        Known known = new Known(event.commandId(), event.commandDigest());
        Contents contents = event.fact().contents();
        return new Order(
            event.fact().status(),
            contents == null ? order.userId : contents.userId(),
            contents == null ? order.total : contents.total(),
            contents,
            order == null ? event.occurredAt() : order.createdAt,
            event.occurredAt(),
            head,
            order == null ? List.of(known) : with(order.accepted, known),
            order == null ? List.of() : order.refused);
    }

    /** Returns the order with one more refused command remembered; the newest 16 are kept. */
    Order after(Rejection rejection) {
        List<Known> all = with(refused, new Known(rejection.commandId(), rejection.commandDigest()));
        List<Known> newest = all.subList(Math.max(0, all.size() - MAX_REFUSED), all.size());
        return new Order(status, userId, total, contents, createdAt, changedAt, head, accepted, newest);
    }

    private static List<Known> with(List<Known> all, Known known) {
        List<Known> longer = new ArrayList<>(all.size() + 1);
        longer.addAll(all);
        longer.add(known);
        return longer;
    }
}
