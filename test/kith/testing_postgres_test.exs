defmodule Kith.TestingPostgresTest do
  # What Kith.Testing does to an instance on a repository.
  use Kith.Case, async: true

  alias Kith.Testing

  @moduletag store: :postgres, postgres: true

  setup do
    kith = start_kith!()
    converse!(kith, "anna", "ben")
    %{kith: kith}
  end

  test "assertions open envelopes and leave them to be opened", %{kith: kith} do
    envelope = encrypt_one!(kith, "anna", "ben", "Dinner at seven?")
    Testing.assert_encrypted(kith, envelope, "Dinner at seven?", to: "ben")
    Testing.refute_opens(kith, Testing.corrupt(envelope), :tampered)
    assert Testing.assert_opens(kith, envelope, "Dinner at seven?")
    Testing.refute_opens(kith, envelope, :duplicate)
  end

  test "sessions are damaged and lost, and identities change", %{kith: kith} do
    envelope = encrypt_one!(kith, "anna", "ben", "hello")
    Testing.corrupt_session!(kith, "ben", "anna")
    Testing.refute_opens(kith, envelope, :corrupted_state)
    Testing.lose_session!(kith, "ben", "anna")
    Testing.refute_opens(kith, envelope, :session_not_found)
    assert [%{device: 1}] = Testing.change_identity!(kith, "ben")
    assert reason(Kith.encrypt(kith, "anna", "ben", "hello")) == :untrusted_identity
  end

  test "what takes SQLite says so", %{kith: kith} do
    for fun <- [
          &Testing.backup/1,
          &Testing.while_storage_fails(&1, fn -> :ok end),
          &Testing.while_contended(&1, fn -> :ok end)
        ],
        do: assert_raise(ArgumentError, ~r/an instance on SQLite/, fn -> fun.(kith) end)
  end
end
