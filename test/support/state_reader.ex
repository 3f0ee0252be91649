defmodule Kith.StateReader do
  @moduledoc false
  import Kith.Case, only: [from: 2]

  # Opens what lies in a database of Kith with nothing but the key-encryption key and OTP's :crypto, as
  # docs/state-format.md describes it. Only tests do this: every secret becomes a term here.

  @doc "All secrets of a database as `{what, bytes}`, each 32 bytes."
  def secrets(query, kek) do
    data_keys =
      for [user, wrapped] <- query.("SELECT user_id, data_key FROM signal_accounts"),
          into: %{},
          do: {user, open_data_key(kek, user, wrapped)}

    [{:key_encryption_key, kek}] ++
      for({_user, key} <- data_keys, do: {:data_key, key}) ++
      identities(query, data_keys) ++
      prekeys(query, data_keys) ++
      sessions(query, data_keys) ++
      archived_sessions(query, data_keys) ++
      skipped_keys(query, data_keys)
  end

  @doc "The opened sessions as `{user, peer, bytes}`."
  def opened_sessions(query, kek) do
    for [user, wrapped] <- query.("SELECT user_id, data_key FROM signal_accounts"),
        key = open_data_key(kek, user, wrapped),
        [^user, device, peer, peer_device, generation, state] <- session_rows(query) do
      {user, peer, open_row(key, ["session", user, device, peer, peer_device, generation], state)}
    end
  end

  defp identities(query, keys) do
    for [user, device, sealed] <-
          query.("SELECT user_id, device_id, private_key_encrypted FROM signal_identity_keys"),
        sealed != nil do
      <<private::binary-32, _public::binary-33>> =
        open_row(keys[user], ["identity", user, device], sealed)

      {:identity_key, private}
    end
  end

  defp prekeys(query, keys) do
    for [user, device, kind, id, sealed] <-
          query.(
            "SELECT user_id, device_id, kind, prekey_id, private_key_encrypted FROM signal_prekeys"
          ),
        sealed != nil do
      kind = %{"one_time" => "one-time-prekey", "signed" => "signed-prekey"}[kind]

      <<private::binary-32, _public::binary-33>> =
        open_row(keys[user], [kind, user, device, id], sealed)

      {:prekey, private}
    end
  end

  defp session_rows(query) do
    query.("""
    SELECT user_id, device_id, peer_id, peer_device_id, generation, state
    FROM signal_sessions WHERE state IS NOT NULL
    """)
  end

  defp sessions(query, keys) do
    for [user, device, peer, peer_device, generation, state] <- session_rows(query),
        secret <-
          session_secrets(
            open_row(keys[user], ["session", user, device, peer, peer_device, generation], state)
          ),
        do: secret
  end

  defp archived_sessions(query, keys) do
    for [user, device, peer, peer_device, id, position, state] <-
          query.("""
          SELECT user_id, device_id, peer_id, peer_device_id, session_id, position, state
          FROM signal_archived_sessions
          """),
        fields = ["archived-session", user, device, peer, peer_device, id, position],
        secret <- session_secrets(open_row(keys[user], fields, state)),
        do: secret
  end

  defp skipped_keys(query, keys) do
    for [user, device, peer, peer_device, id, ratchet_key, counter, sealed] <-
          query.("""
          SELECT user_id, device_id, peer_id, peer_device_id, session_id, ratchet_key, counter, message_key
          FROM signal_skipped_keys
          """) do
      fields = ["skipped-key", user, device, peer, peer_device, id, ratchet_key, counter]
      <<1, seed::binary-32>> = open_row(keys[user], fields, sealed)
      {:skipped_key, seed}
    end
  end

  defp session_secrets(
         <<1, 3, flags, _id::binary-16, _identities::binary-64, _registrations::64,
           _base_key::binary-32, root::binary-32, _ratchet_public::binary-32,
           ratchet_private::binary-32, sending::binary-32, _index::32, _previous::32,
           rest::binary>>
       ) do
    pending = %{0 => 0, 1 => 12, 3 => 16}[flags]
    <<chains, receiving::binary>> = from(rest, pending)
    ^chains = div(byte_size(receiving), 72)

    [{:root_key, root}, {:ratchet_key, ratchet_private}, {:chain_key, sending}] ++
      for <<_ratchet_key::binary-32, key::binary-32, _index::32, _skipped::32 <- receiving>>,
        do: {:chain_key, key}
  end

  @doc "The data key of a user."
  def open_data_key(kek, user, <<1, 0x10, _id::64, n, rest::binary>> = wrapped) do
    <<nonce::binary-12, encrypted::binary-32, tag::binary-16>> = from(rest, n)
    aad = binary_part(wrapped, 0, 11 + n) <> context(["data-key", user])
    open(kek, nonce, encrypted, tag, aad)
  end

  @doc "The content of a sealed row."
  def open_row(key, fields, <<1, 1, _id::64, nonce::binary-12, rest::binary>> = row) do
    size = byte_size(rest) - 16
    {encrypted, tag} = {binary_part(rest, 0, size), from(rest, size)}
    open(key, nonce, encrypted, tag, binary_part(row, 0, 10) <> context(fields))
  end

  defp open(key, nonce, encrypted, tag, aad) do
    plaintext = :crypto.crypto_one_time_aead(:aes_256_gcm, key, nonce, encrypted, aad, tag, false)

    if is_binary(plaintext),
      do: plaintext,
      else: raise("a sealed row does not open as documented")
  end

  defp context(fields) do
    for field <- fields, into: <<"kith", 1>> do
      bytes = if is_integer(field), do: <<field::64>>, else: field
      <<byte_size(bytes)::64, bytes::binary>>
    end
  end
end
