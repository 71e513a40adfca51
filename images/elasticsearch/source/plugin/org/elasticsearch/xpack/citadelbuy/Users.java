package org.elasticsearch.xpack.citadelbuy;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.util.Base64;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Supplier;
import javax.crypto.SecretKeyFactory;
import javax.crypto.spec.PBEKeySpec;
import org.elasticsearch.common.settings.Setting;
import org.elasticsearch.common.settings.Settings;

/**
 * Who may ask: the users whose passwords the cluster's settings hold as hashes, so that all members know them and a
 * restart does. Until its password has been set there, the one user of the environment is known.
 */
final class Users {
    private static final String PREFIX = "citadelbuy.user.";
    private static final int ROUNDS = 10_000;
    private static final int REMEMBERED = 100;
    static final Setting.AffixSetting<String> HASH = Setting.affixKeySetting(PREFIX, "hash",
        key -> Setting.simpleString(key, Setting.Property.NodeScope, Setting.Property.Dynamic, Setting.Property.Filtered));

    private final Supplier<Settings> persistent;
    private final String firstUser;
    private final String firstPassword;
    // A hash takes milliseconds, so what was right is remembered, by a digest, as long as the hash is the same.
    private final Map<String, String> right = new ConcurrentHashMap<>();

    Users(Supplier<Settings> persistent, String firstUser, String firstPassword) {
        this.persistent = persistent;
        this.firstUser = firstUser;
        this.firstPassword = firstPassword;
    }

    boolean exists(String user) {
        return user.equals(firstUser) || stored(user) != null;
    }

    /** Whether an Authorization header names a user and its password. */
    boolean know(String header) {
        if (header == null || !header.startsWith("Basic ")) {
            return false;
        }
        String[] pair;
        try {
            pair = new String(Base64.getDecoder().decode(header.substring(6).trim()), UTF_8).split(":", 2);
        } catch (IllegalArgumentException error) {
            return false;
        }
        if (pair.length != 2) {
            return false;
        }
        String hash = stored(pair[0]);
        if (hash == null) {
            return pair[0].equals(firstUser) && MessageDigest.isEqual(pair[1].getBytes(UTF_8), firstPassword.getBytes(UTF_8));
        }
        String digest = digest(header);
        if (hash.equals(right.get(digest))) {
            return true;
        }
        String[] parts = hash.split(":");
        byte[] salt = Base64.getDecoder().decode(parts[0]);
        if (!MessageDigest.isEqual(derive(pair[1], salt), Base64.getDecoder().decode(parts[1]))) {
            return false;
        }
        if (right.size() >= REMEMBERED) {
            right.clear();
        }
        right.put(digest, hash);
        return true;
    }

    /** The settings that give a user this password. */
    static Settings change(String user, String password) {
        byte[] salt = new byte[16];
        new SecureRandom().nextBytes(salt);
        Base64.Encoder encoder = Base64.getEncoder();
        String hash = encoder.encodeToString(salt) + ":" + encoder.encodeToString(derive(password, salt));
        return Settings.builder().put(PREFIX + user + ".hash", hash).build();
    }

    private String stored(String user) {
        return user.matches("[a-z_]+") ? persistent.get().get(PREFIX + user + ".hash") : null;
    }

    private static byte[] derive(String password, byte[] salt) {
        try {
            PBEKeySpec spec = new PBEKeySpec(password.toCharArray(), salt, ROUNDS, 256);
            return SecretKeyFactory.getInstance("PBKDF2WithHmacSHA256").generateSecret(spec).getEncoded();
        } catch (GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }

    private static String digest(String text) {
        try {
            return Base64.getEncoder().encodeToString(MessageDigest.getInstance("SHA-256").digest(text.getBytes(UTF_8)));
        } catch (GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }
}
