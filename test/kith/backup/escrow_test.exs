defmodule Kith.Backup.EscrowTest do
  use Kith.Case, async: true
  use Kith.Test.Stores

  alias Kith.{Backup, Error}
  alias Kith.Backup.{Escrow, RecoveryKey}

  @private {"escrow-2026", {:key, <<7::256>>}}
  @consent [by: "anna", text: "escrow-3"]
  @asked [by: "admin:carla", purpose: "anna asked for it"]

  setup do
    kith = start_kith!()
    register!(kith, ~w(anna ben))
    {:ok, key} = RecoveryKey.generate()
    {:ok, public} = Escrow.public_key(@private)
    %{kith: kith, key: key, public: {"escrow-2026", {:public, public}}}
  end

  defp words!(key) do
    {:ok, words} = RecoveryKey.words(key)
    words
  end

  test "a key that was deposited under the public half is unwrapped with the private one",
       context do
    %{kith: kith, key: key, public: public} = context
    {:ok, backup} = Backup.export(kith, "anna", key)
    backup = Enum.to_list(backup)
    assert {:ok, consent} = Escrow.deposit(kith, "anna", key, public, @consent)

    assert %{by: "anna", text: "escrow-3", service_key: "escrow-2026", withdrawn_at: nil} =
             consent

    assert {:ok, [^consent]} = Escrow.consents(kith, "anna")

    assert {:ok, unwrapped} = Escrow.unwrap(kith, "anna", @private, @asked)
    assert words!(unwrapped) == words!(key)
    assert {:ok, _} = Backup.verify(kith, backup, unwrapped)

    assert {:ok, [%{by: "admin:carla", purpose: "anna asked for it", result: :ok} = row]} =
             Escrow.unwraps(kith, "anna")

    assert row.escrow == consent.id
  end

  test "nothing is unwrapped without a consent, and the attempt is recorded", context do
    %{kith: kith, key: key, public: public} = context
    assert reason(Escrow.unwrap(kith, "anna", @private, @asked)) == :no_consent
    {:ok, _} = Escrow.deposit(kith, "ben", key, public, by: "ben", text: "escrow-3")
    assert reason(Escrow.unwrap(kith, "anna", @private, @asked)) == :no_consent

    assert {:ok, [first, second]} = Escrow.unwraps(kith, "anna")
    for row <- [first, second], do: assert(%{result: :no_consent, escrow: nil} = row)
    assert {:ok, []} = Escrow.unwraps(kith, "ben")
  end

  test "nor after it was withdrawn, of which a record stays", context do
    %{kith: kith, key: key, public: public} = context
    for _ <- 1..2, do: {:ok, _} = Escrow.deposit(kith, "anna", key, public, @consent)
    assert Escrow.withdraw(kith, "anna", by: "anna, by telephone") == {:ok, 2}
    assert Escrow.withdraw(kith, "anna", by: "anna") == {:ok, 0}
    assert reason(Escrow.unwrap(kith, "anna", @private, @asked)) == :no_consent
    assert {:ok, [_, _] = consents} = Escrow.consents(kith, "anna")

    for consent <- consents do
      assert %{withdrawn_by: "anna, by telephone", text: "escrow-3"} = consent
      assert is_integer(consent.withdrawn_at)
    end

    assert sql!(kith, "SELECT wrapped FROM signal_escrows WHERE wrapped IS NOT NULL") == []
  end

  test "a consent that somebody has edited or moved opens nothing", context do
    %{kith: kith, key: key, public: public} = context
    {:ok, _} = Escrow.deposit(kith, "anna", key, public, @consent)

    for {edit, back} <- [
          {"consent_text = 'escrow-9'", "consent_text = 'escrow-3'"},
          {"consented_by = 'admin'", "consented_by = 'anna'"},
          {"consented_at = consented_at - 1", "consented_at = consented_at + 1"}
        ] do
      sql!(kith, "UPDATE signal_escrows SET #{edit}")
      assert reason(Escrow.unwrap(kith, "anna", @private, @asked)) == :corrupted_state
      sql!(kith, "UPDATE signal_escrows SET #{back}")
    end

    assert {:ok, _} = Escrow.unwrap(kith, "anna", @private, @asked)
    sql!(kith, "UPDATE signal_escrows SET user_id = 'ben'")
    assert reason(Escrow.unwrap(kith, "ben", @private, @asked)) == :corrupted_state
    assert {:ok, [%{result: :corrupted_state}]} = Escrow.unwraps(kith, "ben")
  end

  test "another service key opens nothing", context do
    %{kith: kith, key: key, public: public} = context
    {:ok, _} = Escrow.deposit(kith, "anna", key, public, @consent)
    other = {"escrow-2025", {:key, <<7::256>>}}

    assert {:error, %Error{reason: :key_not_found} = error} =
             Escrow.unwrap(kith, "anna", other, @asked)

    assert Exception.message(error) =~ "escrow-2026"
    same_name = {"escrow-2026", {:key, <<8::256>>}}
    assert reason(Escrow.unwrap(kith, "anna", same_name, @asked)) == :corrupted_state
  end

  test "a key is deposited with the private half too, and the newest is unwrapped", context do
    %{kith: kith, key: key} = context
    {:ok, newer} = RecoveryKey.generate(words: 24)
    {:ok, %{at: at}} = Escrow.deposit(kith, "anna", key, @private, @consent)
    wait_until(at + 1)
    {:ok, _} = Escrow.deposit(kith, "anna", newer, @private, @consent)
    {:ok, unwrapped} = Escrow.unwrap(kith, "anna", @private, @asked)
    assert words!(unwrapped) == words!(newer)
  end

  test "what is not recorded is not unwrapped", %{kith: kith, key: key} do
    {:ok, _} = Escrow.deposit(kith, "anna", key, @private, @consent)

    assert_raise ArgumentError, ~r/outside of a transaction/, fn ->
      undone!(kith, fn -> Escrow.unwrap(kith, "anna", @private, @asked) end)
    end

    for options <- [
          [],
          [by: "admin"],
          [by: "", purpose: "x"],
          [by: "a", purpose: "b", to: "c"],
          [by: :admin, purpose: "x"]
        ],
        do: assert_raise(ArgumentError, fn -> Escrow.unwrap(kith, "anna", @private, options) end)

    for consent <- [[], [by: "anna"], [by: "anna", text: String.duplicate("x", 256)]],
        do:
          assert_raise(ArgumentError, fn ->
            Escrow.deposit(kith, "anna", key, @private, consent)
          end)
  end

  test "a service key that cannot be read raises without being shown", %{kith: kith, key: key} do
    path = Path.join(tmp_dir!(), "escrow.key")
    File.write!(path, Base.encode64(<<7::256>>))
    File.chmod!(path, 0o644)

    for {service_key, message} <- [
          {{"escrow", {:file, path}}, ~r/0600/},
          {{"escrow", {:env, "KITH_NO_SUCH_KEY"}}, ~r/not set/},
          {{"escrow", {:key, <<7::128>>}}, ~r/32 bytes/},
          {{"escrow", <<7::256>>}, ~r/expected a service key/}
        ] do
      assert_raise ArgumentError, message, fn -> Escrow.public_key(service_key) end

      assert_raise ArgumentError, message, fn ->
        Escrow.unwrap(kith, "anna", service_key, @asked)
      end

      assert_raise ArgumentError, message, fn ->
        Escrow.deposit(kith, "anna", key, service_key, @consent)
      end
    end

    File.chmod!(path, 0o600)
    assert Escrow.public_key({"escrow", {:file, path}}) == Escrow.public_key(@private)
    assert {:ok, []} = Escrow.unwraps(kith, "anna")
  end

  test "a wrapped key opens with the algorithms of RFC 9180 alone", %{kith: kith, key: key} do
    {:ok, %{id: id, at: at}} = Escrow.deposit(kith, "anna", key, @private, @consent)

    [[<<1, encapsulated::binary-32, sealed::binary>>]] =
      sql!(kith, "SELECT wrapped FROM signal_escrows")

    fields = ["escrow", "anna", id, "escrow-2026", "anna", "escrow-3", Integer.to_string(at)]

    info =
      <<1, "kith", 1>> <>
        for(field <- fields, into: "", do: <<byte_size(field)::64, field::binary>>)

    {public, _} = :crypto.generate_key(:ecdh, :x25519, <<7::256>>)
    entropy = open(encapsulated, public, <<7::256>>, info, sealed)
    assert byte_size(entropy) == 16

    # It is the key: the commitment in the header of a backup comes out of it.
    {:ok, backup} = Backup.export(kith, "anna", key)
    <<committed::binary-54, commitment::binary-32>> = backup |> Enum.to_list() |> hd()
    prk = :crypto.mac(:hmac, :sha256, from(committed, 22), entropy)
    first = :crypto.mac(:hmac, :sha256, prk, ["kith-backup", committed, 1])
    second = :crypto.mac(:hmac, :sha256, prk, [first, "kith-backup", committed, 2])
    third = :crypto.mac(:hmac, :sha256, prk, [second, "kith-backup", committed, 3])
    assert binary_part(first <> second <> third, 39, 32) == commitment
  end

  # DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode: RFC 9180, sections 4 and 5.
  defp open(encapsulated, public, private, info, sealed) do
    kem = "KEM" <> <<0x0020::16>>
    shared = :crypto.compute_key(:ecdh, encapsulated, private, :x25519)
    eae = extract(kem, "", "eae_prk", shared)
    secret = expand(kem, eae, "shared_secret", encapsulated <> public, 32)

    suite = "HPKE" <> <<0x0020::16, 0x0001::16, 0x0002::16>>

    context =
      <<0>> <> extract(suite, "", "psk_id_hash", "") <> extract(suite, "", "info_hash", info)

    secret = extract(suite, secret, "secret", "")
    key = expand(suite, secret, "key", context, 32)
    nonce = expand(suite, secret, "base_nonce", context, 12)
    size = byte_size(sealed) - 16
    {text, tag} = {binary_part(sealed, 0, size), from(sealed, size)}
    :crypto.crypto_one_time_aead(:aes_256_gcm, key, nonce, text, "", tag, false)
  end

  defp extract(suite, salt, label, ikm),
    do: :crypto.mac(:hmac, :sha256, salt, ["HPKE-v1", suite, label, ikm])

  defp expand(suite, prk, label, info, length) do
    info = <<length::16, "HPKE-v1", suite::binary, label::binary, info::binary>>
    binary_part(:crypto.mac(:hmac, :sha256, prk, info <> <<1>>), 0, length)
  end

  defp wait_until(time) do
    if System.system_time(:millisecond) < time do
      Process.sleep(1)
      wait_until(time)
    end
  end
end
