defmodule Kith.StateReader do
  @moduledoc false
  import Kith.Case, only: [from: 2]

  # Opens what lies in a database of Kith with nothing but the key-encryption key and OTP's :crypto, as
  # docs/state-format.md describes it. Only tests do this: every secret becomes a term here.

  @doc "All secrets of a database as `{what, bytes}`, 32 bytes of each."
  def secrets(query, kek) do
    if is_struct(kek), do: Process.put(__MODULE__, kek)

    data_keys =
      for [user, wrapped] <- query.("SELECT user_id, data_key FROM signal_accounts"),
          into: %{},
          do: {user, open_data_key(kek, ["data-key", user], wrapped)}

    key_encryption_keys(query, kek) ++
      for({_user, key} <- data_keys, do: {:data_key, key}) ++
      for({_thread, key} <- thread_keys(query, kek), do: {:thread_key, key}) ++
      service_keys(query, kek) ++
      identities(query, data_keys) ++
      prekeys(query, data_keys) ++
      sessions(query, data_keys) ++
      braids(query, data_keys) ++
      archived_sessions(query, data_keys) ++
      entries(query, data_keys)
  end

  defp service_keys(query, kek) do
    sql = "SELECT purpose, public_key, private_key_encrypted FROM signed_service_keys"

    for [purpose, public_key, wrapped] <- query.(sql) do
      kind = if purpose == "signing", do: :signing_key, else: :agreement_key
      {kind, open_data_key(kek, ["#{purpose}-key", public_key], wrapped)}
    end
  end

  defp key_encryption_keys(query, %Kith.KMS.Reference{master: master}) do
    wrapping =
      for table <- ~w(signal_accounts signal_threads),
          [wrapped] <- query.("SELECT data_key FROM #{table}"),
          do: {:wrapping_key, elem(wrapping_key(wrapped), 0)}

    [{:key_encryption_key, master} | wrapping]
  end

  defp key_encryption_keys(_query, kek), do: [{:key_encryption_key, kek}]

  defp thread_keys(query, kek) do
    for [thread, wrapped] <- query.("SELECT thread_id, data_key FROM signal_threads"),
        into: %{},
        do: {thread, open_data_key(kek, ["thread-key", thread], wrapped)}
  end

  @doc "Every message of the archive: `{owner, thread, recipients, plaintext}`."
  def archived_messages(query, kek) do
    keys = thread_keys(query, kek)

    for [user, device, thread, position, id, peer, peer_device, sent_at, expires_at, sealed] <-
          query.("""
          SELECT user_id, device_id, thread_id, position, message_id, peer_id, peer_device_id, sent_at, expires_at,
            content
          FROM signal_archived_messages
          """) do
      fields = ["archived-message", user, device, thread, position, id, peer, peer_device]
      # What is not there is empty.
      fields = Enum.map(fields ++ [sent_at, expires_at], &(&1 || ""))
      <<1, count::32, rest::binary>> = open_row(keys[thread], fields, sealed)
      {recipients, plaintext} = recipients(count, rest)
      {{user, device}, thread, recipients, plaintext}
    end
  end

  defp recipients(0, plaintext), do: {[], plaintext}

  defp recipients(count, <<size, rest::binary>>) do
    <<device, after_it::binary>> = from(rest, size)
    {others, plaintext} = recipients(count - 1, after_it)
    {[{binary_part(rest, 0, size), device} | others], plaintext}
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
      {kind, id}
      |> prekey_secrets(&open_row(keys[user], [&1, user, device, id], sealed))
    end
    |> List.flatten()
  end

  defp prekey_secrets({"kyber_" <> _ = kind, _id}, open) do
    <<d::binary-32, z::binary-32>> = open.(String.replace(kind, "_", "-") <> "-prekey")
    [kyber_seed: d, kyber_seed: z]
  end

  defp prekey_secrets({kind, _id}, open) do
    kind = %{"one_time" => "one-time-prekey", "signed" => "signed-prekey"}[kind]
    <<private::binary-32, _public::binary-33>> = open.(kind)
    [prekey: private]
  end

  defp session_rows(query) do
    query.("""
    SELECT s.user_id, s.device_id, s.peer_id, s.peer_device_id, s.generation, b.braid, s.state
    FROM signal_sessions s
    LEFT JOIN signal_braids b USING (user_id, device_id, peer_id, peer_device_id)
    WHERE s.state IS NOT NULL
    """)
  end

  defp sessions(query, keys) do
    for [user, device, peer, peer_device, generation, braid, state] <- session_rows(query),
        fields = ["session", user, device, peer, peer_device, generation, tag(braid)],
        secret <- session_secrets(open_row(keys[user], fields, state)),
        do: secret
  end

  # A sealed part ends with its tag.
  defp tag(nil), do: ""
  defp tag(sealed), do: from(sealed, byte_size(sealed) - 16)

  defp braids(query, keys) do
    for [user, device, peer, peer_device, id, revision, sealed] <-
          query.("""
          SELECT user_id, device_id, peer_id, peer_device_id, session_id, revision, braid
          FROM signal_braids
          """),
        fields = ["braid", user, device, peer, peer_device, id, revision],
        secret <- braid_secrets(open_row(keys[user], fields, sealed)),
        do: secret
  end

  defp archived_sessions(query, keys) do
    for [user, device, peer, peer_device, id, position, state] <-
          query.("""
          SELECT user_id, device_id, peer_id, peer_device_id, session_id, position, state
          FROM signal_archived_sessions
          """),
        fields = ["archived-session", user, device, peer, peer_device, id, position],
        secret <- archived_secrets(open_row(keys[user], fields, state)),
        do: secret
  end

  defp archived_secrets(<<3, size::32, both::binary>>),
    do: session_secrets(binary_part(both, 0, size)) ++ braid_secrets(from(both, size))

  defp archived_secrets(state), do: session_secrets(state)

  defp entries(query, keys) do
    for [user, device, peer, peer_device, id, group, number, sealed] <-
          query.("""
          SELECT user_id, device_id, peer_id, peer_device_id, session_id, entry_group, number, entry
          FROM signal_session_entries
          """),
        fields = ["session-entry", user, device, peer, peer_device, id, group, number],
        secret <- entry_secrets(open_row(keys[user], fields, sealed)),
        do: secret
  end

  defp entry_secrets(<<1, seed::binary-32>>), do: [skipped_key: seed]
  defp entry_secrets(<<3, key::binary-32>>), do: [post_quantum_key: key]
  # Chunks travel in the clear.
  defp entry_secrets(<<4, _three_chunks::binary-102>>), do: []

  defp session_secrets(<<1, 3, flags, _id::binary-16, _facts::binary-104, rest::binary>>) do
    {secrets, ""} = ratchet_secrets(flags, rest)
    secrets
  end

  defp session_secrets(<<2, 4, flags, _id::binary-16, rest::binary>>) do
    {secrets, <<_revision::32, _epochs::128, count, rest::binary>>} = ratchet_secrets(flags, rest)
    secrets ++ epoch_secrets(count, rest)
  end

  defp ratchet_secrets(flags, bytes) do
    <<root::binary-32, _ratchet_public::binary-32, ratchet_private::binary-32, sending::binary-32,
      _index::32, _previous::32, rest::binary>> = bytes

    <<chains, rest::binary>> = from(rest, %{0 => 0, 1 => 12, 3 => 16}[flags])
    receiving = binary_part(rest, 0, chains * 72)

    secrets =
      [{:root_key, root}, {:ratchet_key, ratchet_private}, {:chain_key, sending}] ++
        for <<_ratchet_key::binary-32, key::binary-32, _index::32, _skipped::32 <- receiving>>,
          do: {:chain_key, key}

    {secrets, from(rest, chains * 72)}
  end

  # What follows the epochs, of chunks, travels in the clear.
  defp epoch_secrets(0, _chunks), do: []

  defp epoch_secrets(count, <<0, _index::32, rest::binary>>), do: receiving_half(count, rest)

  defp epoch_secrets(count, <<1, _index::32, key::binary-32, rest::binary>>),
    do: [{:post_quantum_chain_key, key} | receiving_half(count, rest)]

  defp receiving_half(count, <<_index::32, key::binary-32, _kept::16, rest::binary>>),
    do: [{:post_quantum_chain_key, key} | epoch_secrets(count - 1, rest)]

  @kyber 1
  @auth_key 2

  defp braid_secrets(
         <<1, _id::binary-16, _revision::32, _facts::binary-104, flags, rest::binary>>
       ) do
    rest = if flag?(flags, @kyber), do: from(rest, 4 + 1569), else: rest

    {auth_key, rest} =
      if flag?(flags, @auth_key),
        do: {[braid_auth_key: binary_part(rest, 0, 32)], from(rest, 32)},
        else: {[], rest}

    <<root::binary-32, _epoch::64, authenticator::binary-32, mac_key::binary-32, tag,
      parts::binary>> = rest

    auth_key ++
      [braid_root: root, braid_authenticator: authenticator, braid_mac_key: mac_key] ++
      part_secrets(tag, parts)
  end

  @dk 2400
  @encapsulation 2080
  @ct1 960

  # States without a secret of their own, then those with a decapsulation key, then with an encapsulation state.
  defp part_secrets(tag, _parts) when tag in [1, 6, 7, 11], do: []
  defp part_secrets(2, <<_header_and_mac::binary-96, dk::binary-@dk>>), do: decapsulation(dk)
  defp part_secrets(3, <<dk::binary-@dk>>), do: decapsulation(dk)

  defp part_secrets(tag, <<_ct1::binary-@ct1, dk::binary-@dk>>) when tag in [4, 5],
    do: decapsulation(dk)

  defp part_secrets(
         tag,
         <<_header::binary-64, state::binary-@encapsulation, _ct1::binary-@ct1>>
       )
       when tag in [8, 10],
       do: encapsulation(state)

  defp part_secrets(9, <<state::binary-@encapsulation, _ek::binary-1152, _ct1::binary-@ct1>>),
    do: encapsulation(state)

  # The secret vector comes first, the seed of implicit rejection last.
  defp decapsulation(dk), do: ends(:decapsulation_key, dk)

  # Coefficients first, the randomness last.
  defp encapsulation(state), do: ends(:encapsulation_state, state)

  defp ends(kind, bytes),
    do: [{kind, binary_part(bytes, 0, 32)}, {kind, from(bytes, byte_size(bytes) - 32)}]

  defp flag?(flags, flag), do: Bitwise.band(flags, flag) != 0

  @doc "The data key of a user or a thread, whatever it seals with."
  def open_data_key(kek, fields, <<1, algorithm, _id::64, n, rest::binary>> = wrapped)
      when algorithm in [0x10, 0x18] do
    <<nonce::binary-12, encrypted::binary-32, tag::binary-16>> = from(rest, n)
    aad = binary_part(wrapped, 0, 11 + n) <> context(fields)
    open(:aes_256_gcm, kek, nonce, encrypted, tag, aad)
  end

  # With the master key of Kith.KMS.Reference in place of a key-encryption key.
  def open_data_key(%Kith.KMS.Reference{}, fields, <<1, algorithm, _::binary>> = wrapped)
      when algorithm in [0x13, 0x1B] do
    {wrapping, aad, <<nonce::binary-12, encrypted::binary-32, tag::binary-16>>} =
      wrapping_key(wrapped)

    open(:aes_256_gcm, wrapping, nonce, encrypted, tag, aad <> context(fields))
  end

  defp parts(wrapped) do
    <<1, _algorithm, _id::64, n, rest::binary>> = wrapped
    <<version::32, key_length::16, rest::binary>> = from(rest, n)
    key_id = binary_part(rest, 0, key_length)
    <<wrapped_length::16, rest::binary>> = from(rest, key_length)
    <<length::16, rest::binary>> = from(rest, wrapped_length)
    {key_id, version, binary_part(rest, 0, length), from(rest, length)}
  end

  @doc "The key that seals a data key, as the service decrypts it; the header, and what is sealed."
  def wrapping_key(wrapped) do
    %Kith.KMS.Reference{} = kms = Process.get(__MODULE__)
    {key_id, version, ciphertext, sealed} = parts(wrapped)
    {:ok, wrapping} = Kith.KMS.Reference.decrypt_with_dek(kms, key_id, ciphertext, "", version)
    {wrapping, binary_part(wrapped, 0, byte_size(wrapped) - byte_size(sealed)), sealed}
  end

  @doc "The content of a sealed row."
  def open_row(key, fields, <<1, algorithm, _id::64, nonce::binary-12, rest::binary>> = row) do
    size = byte_size(rest) - 16
    {encrypted, tag} = {binary_part(rest, 0, size), from(rest, size)}
    cipher = %{1 => :aes_256_gcm, 2 => :chacha20_poly1305}[algorithm]
    open(cipher, key, nonce, encrypted, tag, binary_part(row, 0, 10) <> context(fields))
  end

  defp open(cipher, key, nonce, encrypted, tag, aad) do
    plaintext = :crypto.crypto_one_time_aead(cipher, key, nonce, encrypted, aad, tag, false)

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
