package orders;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.PropertyNamingStrategies;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The constants of the service, in the file that {@code bench/peers/contract.py} writes.
 *
 * @param rules the outcome of each command in each status: the name of a fact, or the reason of the refusal
 * @param schemas the id of the newest schema of each message
 */
record Contract(
    Map<String, String> causes, Set<String> neverRemembered, Map<String, Map<String, String>> rules,
    Set<String> currencies, List<String> cancelReasons, Map<String, Integer> schemas) {

    static Contract read(Path file) throws IOException {
        return new ObjectMapper().setPropertyNamingStrategy(PropertyNamingStrategies.SNAKE_CASE)
            .readValue(file.toFile(), Contract.class);
    }
}
