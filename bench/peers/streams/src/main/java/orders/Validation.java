package orders;

import static orders.Refusal.invalid;

import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;

/** The valid values of a command. */
final class Validation {
    private static final Pattern ID = Pattern.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,127}");
    private static final int MAX_FOREIGN_ID = 255;
    private static final int MAX_LINES = 500;
    private static final long MAX_QUANTITY = 1_000_000;
    private static final long MAX_UNIT_PRICE = 1_000_000_000_000L;
    private static final long MAX_TOTAL = 1L << 53;
    private static final int MAX_TEXT = 200;
    private static final int MAX_METADATA = 20;
    private static final int MAX_METADATA_KEY = 40;
    private static final int MAX_METADATA_VALUE = 500;

    private final Contract contract;

    Validation(Contract contract) {
        this.contract = contract;
    }

    static boolean isId(String text) {
        return ID.matcher(text).matches();
    }

    /** Returns whether a text is an id of another system: 1 to 255 characters, no control character among them. */
    static boolean isForeignId(String text) {
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (Character.isISOControl(c)) {
                return false;
            }
            if (Character.isSurrogate(c)
                && (i + 1 == text.length() || !Character.isSurrogatePair(c, text.charAt(++i)))) {
                return false;
            }
        }
        return !text.isEmpty() && isWithin(text, MAX_FOREIGN_ID);
    }

    /** Returns a refusal for the first value that is out of range, or null. */
    Refusal fault(Command command) {
        if (command instanceof Command.CreateOrder c) {
            return first(foreignId("/user_id", c.userId()), currency(c.currency()),
                values(c.lines(), c.discount(), c.tax(), c.shipping(), c.shippingAddressRef(), c.metadata()));
        }
        if (command instanceof Command.AmendOrder a) {
            return first(anyChange(a),
                values(a.lines(), a.discount(), a.tax(), a.shipping(), a.shippingAddressRef(), a.metadata()));
        }
        if (command instanceof Command.PayOrder p) {
            return first(foreignId("/payment_id", p.paymentId()), currency(p.currency()), money("/amount", p.amount()));
        }
        if (command instanceof Command.ShipOrder s) {
            return first(foreignId("/carrier", s.carrier()), foreignId("/tracking_number", s.trackingNumber()));
        }
        if (command instanceof Command.CancelOrder c) {
            return first(contract.cancelReasons().contains(c.reason()) ? null
                : invalid("/reason", "one of " + String.join(", ", contract.cancelReasons())), text("/note", c.note()));
        }
        return null;
    }

    /** Returns a refusal if the discount exceeds the subtotal or the total is out of range, or null. */
    static Refusal fault(Order.Contents contents) {
        long subtotal = contents.total() + contents.discount() - contents.tax() - contents.shipping();
        if (contents.discount() > subtotal) {
            return invalid("/discount", "at most the subtotal, " + subtotal);
        }
        return contents.total() > MAX_TOTAL ? invalid("/lines", "at most 2^53 in total") : null;
    }

    private static Refusal first(Refusal... refusals) {
        for (Refusal refusal : refusals) {
            if (refusal != null) {
                return refusal;
            }
        }
        return null;
    }

    private static Refusal anyChange(Command.AmendOrder a) {
        boolean isAny = a.lines() != null || a.discount() != null || a.tax() != null || a.shipping() != null
            || a.shippingAddressRef() != null || a.metadata() != null;
        return isAny ? null
            : new Refusal("invalid_order", "the command must be an amendment of at least one field", null);
    }

    private static Refusal values(
        List<Command.Line> lines, Long discount, Long tax, Long shipping, String address,
        Map<String, String> metadata) {
        return first(lines(lines), money("/discount", discount), money("/tax", tax), money("/shipping", shipping),
            foreignId("/shipping_address_ref", address), metadata(metadata));
    }

    private static Refusal lines(List<Command.Line> lines) {
        if (lines == null) {
            return null;
        }
        if (lines.isEmpty() || lines.size() > MAX_LINES) {
            return invalid("/lines", "1…" + MAX_LINES + " lines, not " + lines.size());
        }
        Set<String> ids = new HashSet<>();
        for (int i = 0; i < lines.size(); i++) {
            Command.Line line = lines.get(i);
            Refusal refusal = line("/lines/" + i, line);
            if (refusal != null) {
                return refusal;
            }
            ids.add(line.lineId() == null ? String.valueOf(i + 1) : line.lineId());
        }
        return ids.size() == lines.size() ? null : invalid("/lines", "lines with different line_ids");
    }

    private static Refusal line(String at, Command.Line line) {
        Refusal refusal = first(
            foreignId(at + "/line_id", line.lineId()), foreignId(at + "/sku", line.sku()),
            text(at + "/name", line.name()));
        if (refusal != null) {
            return refusal;
        }
        if (line.quantity() < 1 || line.quantity() > MAX_QUANTITY) {
            return invalid(at + "/quantity", "1…" + MAX_QUANTITY);
        }
        if (line.unitPrice() < 0 || line.unitPrice() > MAX_UNIT_PRICE) {
            return invalid(at + "/unit_price", "0…" + MAX_UNIT_PRICE);
        }
        return null;
    }

    private static Refusal metadata(Map<String, String> metadata) {
        if (metadata == null || metadata.isEmpty()) {
            return null;
        }
        if (metadata.size() > MAX_METADATA) {
            return invalid("/metadata", "at most " + MAX_METADATA + " entries");
        }
        if (!metadata.keySet().stream().allMatch(key -> isWithin(key, MAX_METADATA_KEY))) {
            return invalid("/metadata", "a map with keys of at most " + MAX_METADATA_KEY + " characters");
        }
        if (!metadata.values().stream().allMatch(value -> isWithin(value, MAX_METADATA_VALUE))) {
            return invalid("/metadata", "a map with values of at most " + MAX_METADATA_VALUE + " characters");
        }
        return null;
    }

    private static Refusal foreignId(String pointer, String value) {
        return value == null || isForeignId(value) ? null
            : invalid(pointer, "1 to " + MAX_FOREIGN_ID + " characters of Unicode without control characters");
    }

    private static Refusal text(String pointer, String value) {
        return value == null || isWithin(value, MAX_TEXT) ? null
            : invalid(pointer, "at most " + MAX_TEXT + " characters");
    }

    private static Refusal money(String pointer, Long amount) {
        return amount == null || amount >= 0 && amount <= MAX_TOTAL ? null : invalid(pointer, "0…" + MAX_TOTAL);
    }

    private Refusal currency(String currency) {
        return contract.currencies().contains(currency) ? null : invalid("/currency", "an ISO 4217 currency code");
    }

    private static boolean isWithin(String text, int characters) {
        return text.codePointCount(0, text.length()) <= characters;
    }
}
