package interop;

/** One JSON object a line on standard output; lines of several threads never mix. */
final class Line {
    private final StringBuilder text = new StringBuilder("{");

    Line(String event) {
        put("event", event);
    }

    Line put(String name, Object value) {
        if (value == null) {
            return this;
        }
        if (text.length() > 1) {
            text.append(',');
        }
        quote(name);
        text.append(':');
        if (value instanceof Number) {
            text.append(value);
        } else {
            quote(value.toString());
        }
        return this;
    }

    void print() {
        String line = text.append('}').toString();
        synchronized (Line.class) {
            System.out.println(line);
            System.out.flush();
        }
    }

    private void quote(String value) {
        text.append('"');
        for (char c : value.toCharArray()) {
            if (c == '"' || c == '\\') {
                text.append('\\').append(c);
            } else if (c < ' ') {
                text.append(String.format("\\u%04x", (int) c));
            } else {
                text.append(c);
            }
        }
        text.append('"');
    }
}
