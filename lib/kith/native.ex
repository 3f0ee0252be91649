defmodule Kith.Native do
  @moduledoc false
  # One clause per function in native/kith_nif; test/kith/native_test.exs keeps the two lists equal.

  # As in native/compile.kith_nif.exs. A dependency is compiled in :prod.
  @library if Mix.env() == :test, do: "kith_nif_test", else: "kith_nif"

  # Recompiles, and so reloads, this module in IEx when the library changes.
  @external_resource Path.expand("../../priv/native/#{@library}.so", __DIR__)

  @on_load :load

  @doc false
  # Always :ok, so that a missing library is an error that says so when it is first used, rather
  # than "module Kith.Native is not available".
  def load do
    # Without this, a reload in IEx fails: "Upgrade not supported by this NIF library".
    :code.purge(__MODULE__)

    path = Application.app_dir(:kith, "priv/native/#{@library}")
    :persistent_term.put(__MODULE__, :erlang.load_nif(String.to_charlist(path), 0))
  end

  # seam
  def reasons, do: not_loaded()
  def panic_location, do: not_loaded()
  def panic_arm(_nif_name, _count), do: not_loaded()

  # vault
  def vault_open(_current_id, _keys, _limits), do: not_loaded()
  def account_create(_vault, _user), do: not_loaded()
  def self_seal(_vault, _account, _plaintext), do: not_loaded()
  def self_open(_vault, _account, _sealed), do: not_loaded()

  # kms
  def kms_fetch(_vault, _kind, _key), do: not_loaded()
  def kms_prepare(_vault, _kind, _owner), do: not_loaded()
  def kms_probe(_vault), do: not_loaded()
  def kms_sweep(_vault), do: not_loaded()
  def kms_forget(_vault), do: not_loaded()
  def vault_memory(_vault), do: not_loaded()
  def wrapped_key_inspect(_wrapped), do: not_loaded()
  def passphrase_create(_secret, _parameters), do: not_loaded()

  # thread
  def thread_create(_vault, _thread), do: not_loaded()
  def archive_seal(_vault, _thread, _owner, _place, _content), do: not_loaded()
  def archive_open(_vault, _thread, _owner, _rows), do: not_loaded()

  # device
  def identity_create(_vault, _account, _device), do: not_loaded()
  def identity_import(_vault, _account, _device, _pair), do: not_loaded()
  def identity_share(_vault, _account, _device, _other), do: not_loaded()
  def signed_prekey_create(_vault, _account, _device, _identity, _id), do: not_loaded()
  def prekeys_create(_vault, _account, _device, _first_id, _count), do: not_loaded()

  def kyber_prekeys_create(_vault, _account, _device, _identity, _kind, _ids),
    do: not_loaded()

  def bundle_verify(_bundle, _kyber_prekeys), do: not_loaded()

  # session
  def session_encrypt(_vault, _account, _local, _recipients, _plaintext, _now_ms),
    do: not_loaded()

  def session_decrypt(_vault, _account, _local, _peer, _message), do: not_loaded()
  def session_archive(_vault, _account, _local_address, _peer), do: not_loaded()
  def session_import(_vault, _account, _local, _peer, _record), do: not_loaded()
  def session_info(_vault, _account, _local_address, _peer, _now_ms), do: not_loaded()
  def message_inspect(_type, _body), do: not_loaded()
  def report_create(_message, _timestamp, _device), do: not_loaded()
  def report_parse(_content), do: not_loaded()

  def identity_seal(_vault, _account, _local_address, _peer_address, _remembered),
    do: not_loaded()

  def identity_open(_vault, _account, _local_address, _peer_address, _sealed), do: not_loaded()
  def safety_number(_user, _public_key, _peer, _peer_public_key), do: not_loaded()

  def safety_number_matches(_user, _public_key, _peer, _peer_public_key, _scanned),
    do: not_loaded()

  # password
  def password_hash(_password, _parameters), do: not_loaded()
  def password_verify(_password, _hash), do: not_loaded()
  def password_inspect(_hash), do: not_loaded()

  # sqlite
  def sqlite_open(_location, _synchronous, _busy_timeout_ms), do: not_loaded()
  def sqlite_reset(_connection), do: not_loaded()
  def sqlite_query(_connection, _lease, _scope, _sql, _parameters), do: not_loaded()
  def sqlite_execute(_connection, _lease, _scope, _sql), do: not_loaded()
  def sqlite_commit(_connection, _lease), do: not_loaded()
  def sqlite_rollback(_connection, _lease), do: not_loaded()
  def sqlite_checkpoint(_connection, _lease), do: not_loaded()
  def sqlite_close(_connection), do: not_loaded()

  # nif_error rather than raise: Dialyzer then knows that a NIF replaces these functions.
  defp not_loaded do
    {:error, reason} = :persistent_term.get(__MODULE__)
    :erlang.nif_error(Kith.NifNotLoadedError.exception(reason: reason))
  end
end
