package orders;

/** The outcome of a decided command. A repeated command has no outcome. */
sealed interface Outcome {
    record Event(
        String eventId, String orderId, long version, String commandId, byte[] commandDigest, String correlationId,
        String actor, long occurredAt, byte[] previousDigest, Fact fact) implements Outcome {}

    record Rejection(
        String rejectionId, String commandId, byte[] commandDigest, String commandType, String orderId, String reason,
        String detail, String status, long version, String actor, long rejectedAt, String correlationId,
        String pointer) implements Outcome {}
}
