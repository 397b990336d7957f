package interop;

import java.io.IOException;

/**
 * Drives one unmodified Java client: {@code produce} or {@code consume}, options as in tests/interop/README.md.
 * Every client stays connected until its standard input ends, so that the caller decides when it has seen enough.
 */
public final class Main {
    public static void main(String[] arguments) {
        Options options = new Options(arguments);
        try {
            switch (options.verb()) {
                case "produce":
                    Produce.run(options);
                    break;
                case "consume":
                    if (options.flag("lite")) {
                        LitePull.run(options);
                    } else {
                        Consume.run(options);
                    }
                    break;
                default:
                    throw new IllegalArgumentException("unknown command " + options.verb());
            }
            System.exit(0);
        } catch (Throwable failure) {
            new Line("error").put("error", failure.toString()).print();
            System.exit(1);
        }
    }

    static void untilInputEnds() throws IOException {
        while (System.in.read() >= 0) {
            // Only the end of the input means anything.
        }
    }
}
