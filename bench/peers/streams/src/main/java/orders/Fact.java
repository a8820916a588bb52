package orders;

import orders.Order.Contents;
import orders.Order.Status;

/** What happened to an order, with the status that it leads to. */
sealed interface Fact {
    Status status();

    /** Returns the contents of the order after the fact, or null if no later rule needs them. */
    default Contents contents() {
        return null;
    }

    default String schema() {
        return "Order" + getClass().getSimpleName();
    }

    record Created(Contents contents) implements Fact {
        @Override
        public Status status() {
            return Status.CREATED;
        }
    }

    record Amended(Contents contents) implements Fact {
        @Override
        public Status status() {
            return Status.CREATED;
        }
    }

    record Paid(String paymentId, long amount, String currency) implements Fact {
        @Override
        public Status status() {
            return Status.PAID;
        }
    }

    record Shipped(String carrier, String trackingNumber) implements Fact {
        @Override
        public Status status() {
            return Status.SHIPPED;
        }
    }

    record Delivered() implements Fact {
        @Override
        public Status status() {
            return Status.DELIVERED;
        }
    }

    record Cancelled(String reason, String note, long refundDue) implements Fact {
        @Override
        public Status status() {
            return Status.CANCELLED;
        }
    }
}
