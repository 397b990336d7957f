package interop;

import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

/** {@code VERB --name value --flag …}. */
final class Options {
    private static final Set<String> FLAGS = Set.of("heartbeat-v2", "keys", "lite", "orderly", "pop", "reply", "retry-failed", "trace");

    private final String verb;
    private final Map<String, String> values = new TreeMap<>();

    Options(String[] arguments) {
        verb = arguments.length == 0 ? "" : arguments[0];
        for (int i = 1; i < arguments.length; i++) {
            String name = arguments[i].replaceFirst("^--", "");
            values.put(name, FLAGS.contains(name) ? "true" : arguments[++i]);
        }
    }

    String verb() {
        return verb;
    }

    String text(String name) {
        String value = values.get(name);
        if (value == null) {
            throw new IllegalArgumentException("missing --" + name);
        }
        return value;
    }

    String text(String name, String otherwise) {
        return values.getOrDefault(name, otherwise);
    }

    int number(String name, int otherwise) {
        return values.containsKey(name) ? Integer.parseInt(values.get(name)) : otherwise;
    }

    boolean flag(String name) {
        return values.containsKey(name);
    }
}
