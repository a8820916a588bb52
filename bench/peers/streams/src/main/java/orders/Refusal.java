package orders;

/**
 * A reason, with a detail if the reason alone does not explain it.
 *
 * @param pointer the JSON pointer of the invalid field, or null if no single field is invalid
 */
record Refusal(String reason, String detail, String pointer) {
    Refusal(String reason) {
        this(reason, null, null);
    }

    static Refusal invalid(String pointer, String mustBe) {
        return new Refusal("invalid_order", pointer + " must be " + mustBe, pointer);
    }
}
