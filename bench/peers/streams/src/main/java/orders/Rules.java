package orders;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.stream.Stream;
import orders.Order.Contents;
import orders.Order.Known;
import orders.Order.Line;
import orders.Order.Status;
import orders.Outcome.Event;
import orders.Outcome.Rejection;

/** Answers commands as {@code order_service/domain} does, but for users, who are all known and active. */
final class Rules {
    private static final int MAX_AMENDMENTS = 50;
    private static final long MAX_SUBTOTAL = 4_000_000_000_000_000_000L;

    private final Contract contract;
    private final Identity identity;
    private final Validation validation;

    Rules(Contract contract, Identity identity) {
        this.contract = contract;
        this.identity = identity;
        this.validation = new Validation(contract);
    }

    /** Returns the outcome of a command, or nothing if the order remembers it; {@code order} is null if absent. */
    Optional<Outcome> answer(Command command, Order order, long now) {
        byte[] digest = identity.digest(command);
        boolean isKnown = false;
        if (order != null) {
            for (Known known : concat(order.accepted(), order.refused())) {
                if (known.commandId().equals(command.commandId())) {
                    if (Arrays.equals(known.digest(), digest)) {
                        return Optional.empty();
                    }
                    isKnown = true;
                }
            }
        }
        Refusal refusal = isKnown ? new Refusal("command_id_reused") : refusal(command, order, now);
        if (refusal != null) {
            return Optional.of(rejection(command, digest, order, now, refusal));
        }
        Fact fact = fact(command, order);
        refusal = refusal(fact, order);
        return Optional.of(refusal == null
            ? event(command, digest, order, now, fact)
            : rejection(command, digest, order, now, refusal));
    }

    private static List<Known> concat(List<Known> accepted, List<Known> refused) {
        return refused.isEmpty() ? accepted : Stream.concat(accepted.stream(), refused.stream()).toList();
    }

    /** Checks in this order: deadline, actor, presence, version, content, rules. */
    private Refusal refusal(Command command, Order order, long now) {
        if (command.decideBy() != null && now > command.decideBy().toEpochMilli()) {
            return new Refusal("deadline_passed");
        }
        if (!may(command)) {
            return new Refusal("not_allowed");
        }
        boolean isCreate = command instanceof Command.CreateOrder;
        if (isCreate && order != null) {
            return new Refusal("order_exists");
        }
        if (!isCreate && (order == null || !maySee(command.actor(), order))) {
            return new Refusal("order_not_found");
        }
        long version = order == null ? 0 : order.version();
        if (command.expectedVersion() != null && command.expectedVersion() != version) {
            return new Refusal("version_conflict",
                "expected version " + command.expectedVersion() + ", the order is at version " + version, null);
        }
        Refusal fault = validation.fault(command);
        if (fault != null) {
            return fault;
        }
        String outcome = contract.rules().get(command.type()).get(status(order));
        if (contract.causes().containsKey(outcome)) {
            return new Refusal(outcome);
        }
        if (command instanceof Command.PayOrder pay
            && (pay.amount() != order.total() || !pay.currency().equals(order.contents().currency()))) {
            return new Refusal("payment_mismatch", "expected " + order.total() + " " + order.contents().currency()
                + ", got " + pay.amount() + " " + pay.currency(), null);
        }
        return null;
    }

    private static Refusal refusal(Fact fact, Order order) {
        Contents contents = fact.contents();
        Refusal fault = contents == null ? null : Validation.fault(contents);
        if (fault != null) {
            return fault;
        }
        return fact instanceof Fact.Amended && order.version() > MAX_AMENDMENTS
            ? new Refusal("too_many_changes") : null;
    }

    private static boolean may(Command command) {
        String[] actor = command.actor().split(":", 2);
        if (actor.length < 2 || !Validation.isForeignId(actor[1])) {
            return false;
        }
        if (actor[0].equals("service")) {
            return true;
        }
        return actor[0].equals("user") && (command instanceof Command.CreateOrder create
            ? create.userId().equals(actor[1])
            : command instanceof Command.AmendOrder || command instanceof Command.CancelOrder);
    }

    private static boolean maySee(String actor, Order order) {
        return actor.startsWith("service:") || actor.equals("user:" + order.userId());
    }

    private static Fact fact(Command command, Order order) {
        if (command instanceof Command.CreateOrder c) {
            List<Line> lines = numbered(c.lines());
            return new Fact.Created(new Contents(c.userId(), c.currency(), lines, c.discount(), c.tax(), c.shipping(),
                total(lines, c.discount(), c.tax(), c.shipping()), c.shippingAddressRef(), c.metadata()));
        }
        if (command instanceof Command.AmendOrder a) {
            Contents old = order.contents();
            List<Line> lines = a.lines() == null ? old.lines() : numbered(a.lines());
            long discount = a.discount() == null ? old.discount() : a.discount();
            long tax = a.tax() == null ? old.tax() : a.tax();
            long shipping = a.shipping() == null ? old.shipping() : a.shipping();
            return new Fact.Amended(new Contents(old.userId(), old.currency(), lines, discount, tax, shipping,
                total(lines, discount, tax, shipping),
                a.shippingAddressRef() == null ? old.shippingAddressRef() : a.shippingAddressRef(),
                a.metadata() == null ? old.metadata() : a.metadata()));
        }
        if (command instanceof Command.PayOrder p) {
            return new Fact.Paid(p.paymentId(), p.amount(), p.currency());
        }
        if (command instanceof Command.ShipOrder s) {
            return new Fact.Shipped(s.carrier(), s.trackingNumber());
        }
        if (command instanceof Command.CancelOrder c) {
            return new Fact.Cancelled(c.reason(), c.note(), order.status() == Status.PAID ? order.total() : 0);
        }
        return new Fact.Delivered();
    }

    private static List<Line> numbered(List<Command.Line> lines) {
        List<Line> numbered = new ArrayList<>(lines.size());
        for (Command.Line line : lines) {
            String id = line.lineId() == null ? String.valueOf(numbered.size() + 1) : line.lineId();
            numbered.add(new Line(id, line.sku(), line.name(), line.quantity(), line.unitPrice()));
        }
        return numbered;
    }

    private static long total(List<Line> lines, long discount, long tax, long shipping) {
        long subtotal = 0;
        for (Line line : lines) {  // a line is at most 10^18
            subtotal = Math.min(MAX_SUBTOTAL, subtotal + line.quantity() * line.unitPrice());
        }
        return subtotal - discount + tax + shipping;
    }

    private Event event(Command command, byte[] digest, Order order, long now, Fact fact) {
        long version = order == null ? 1 : order.version() + 1;
        return new Event(
            identity.id(command.orderId(), String.valueOf(version)), command.orderId(), version, command.commandId(),
            digest, command.correlationId(), command.actor(), order == null ? now : Math.max(now, order.changedAt()),
            order == null ? null : order.head(), fact);
    }

    private Rejection rejection(Command command, byte[] digest, Order order, long now, Refusal refusal) {
        Order seen = order != null && maySee(command.actor(), order) ? order : null;
        return new Rejection(
            identity.id(command.orderId(), command.commandId(), HexFormat.of().formatHex(digest)), command.commandId(),
            digest, command.type(), command.orderId(), refusal.reason(),
            refusal.detail() == null ? contract.causes().get(refusal.reason()) : refusal.detail(), status(seen),
            seen == null ? 0 : seen.version(), command.actor(), now, command.correlationId(), refusal.pointer());
    }

    private static String status(Order order) {
        return (order == null ? Status.ABSENT : order.status()).name().toLowerCase(Locale.ROOT);
    }
}
