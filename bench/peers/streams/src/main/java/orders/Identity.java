package orders;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.bouncycastle.crypto.digests.Blake2bDigest;
import org.msgpack.core.MessageBufferPacker;
import org.msgpack.core.MessagePack;
import org.msgpack.core.MessagePacker;

/** Digests of commands and values (BLAKE2b-128), and ids (uuid5). Not thread-safe. */
final class Identity {
    private static final byte[] NAMESPACE = HexFormat.of().parseHex("6d3a1f0e6f2b5d7e9f5a0f3c5f1d2b4a");

    private final Blake2bDigest blake2b = new Blake2bDigest(128);
    private final MessageDigest sha1;

    Identity() {
        try {
            sha1 = MessageDigest.getInstance("SHA-1");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);  // every Java has it
        }
    }

    byte[] digest(byte[] value) {
        byte[] digest = new byte[16];
        blake2b.update(value, 0, value.length);
        blake2b.doFinal(digest, 0);
        return digest;
    }

    byte[] digest(Command command) {
        try (MessageBufferPacker packer = MessagePack.newDefaultBufferPacker()) {
            pack(packer, command.fields());
            return digest(packer.toByteArray());
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    private static void pack(MessagePacker packer, Object value) throws IOException {
        if (value instanceof Map<?, ?> map) {
            packer.packMapHeader(map.size());
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                pack(packer, entry.getKey());
                pack(packer, entry.getValue());
            }
        } else if (value instanceof List<?> list) {
            packer.packArrayHeader(list.size());
            for (Object item : list) {
                pack(packer, item);
            }
        } else if (value instanceof Long number) {
            packer.packLong(number);
        } else {
            packer.packString((String) value);
        }
    }

    /** Returns the uuid5 of the names, joined by NUL. */
    String id(String... names) {
        sha1.update(NAMESPACE);
        ByteBuffer hash = ByteBuffer.wrap(sha1.digest(String.join("\0", names).getBytes(StandardCharsets.UTF_8)));
        long high = hash.getLong() & ~0xF000L | 0x5000L;
        long low = hash.getLong() & 0x3FFF_FFFF_FFFF_FFFFL | 0x8000_0000_0000_0000L;
        return new UUID(high, low).toString();
    }
}
