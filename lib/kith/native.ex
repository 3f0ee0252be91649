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
  def vault_open(_current_id, _keys, _limits, _cipher), do: not_loaded()
  def account_create(_vault, _user), do: not_loaded()
  def self_seal(_vault, _account, _plaintext), do: not_loaded()
  def self_open(_vault, _account, _sealed), do: not_loaded()
  def account_lock(_vault, _user, _password, _costs), do: not_loaded()
  def account_relock(_vault, _user, _unlocked, _password, _costs), do: not_loaded()
  def account_unlock(_vault, _user, _locked, _password), do: not_loaded()
  def account_costs(_vault, _user, _locked), do: not_loaded()
  def account_close(_unlocked), do: not_loaded()
  def account_wrap(_vault, _user, _unlocked), do: not_loaded()
  def account_token(_vault, _user, _unlocked, _expires_at), do: not_loaded()
  def account_open_token(_vault, _user, _token), do: not_loaded()
  def account_rewrap(_vault, _user, _data_key), do: not_loaded()
  def account_lock_anew(_vault, _user, _locked), do: not_loaded()
  def account_same_lock(_vault, _user, _one, _other), do: not_loaded()
  def account_retire(_vault, _before, _after), do: not_loaded()
  def account_retired(_vault, _account, _key_id, _sealed), do: not_loaded()
  def thread_rewrap(_vault, _thread, _data_key), do: not_loaded()
  def rows_reseal(_vault, _before, _after, _rows), do: not_loaded()

  # kms
  def kms_fetch(_vault, _kind, _key), do: not_loaded()
  def kms_prepare(_vault, _kind, _owner, _or_fallback), do: not_loaded()
  def kms_probe(_vault), do: not_loaded()
  def kms_sweep(_vault), do: not_loaded()
  def kms_forget(_vault), do: not_loaded()
  def vault_memory(_vault), do: not_loaded()
  def wrapped_key_inspect(_wrapped), do: not_loaded()
  def passphrase_create(_secret, _parameters), do: not_loaded()

  # thread
  def thread_create(_vault, _thread), do: not_loaded()
  def archive_seal(_vault, _thread, _account, _owner, _place, _content), do: not_loaded()
  def archive_open(_vault, _thread, _account, _owner, _rows), do: not_loaded()
  def archive_reseal(_vault, _thread, _accounts, _rows), do: not_loaded()
  def thread_reseal(_vault, _before, _after, _rows), do: not_loaded()

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

  # field
  def field_vault_open(_current_label, _ciphers), do: not_loaded()
  def field_encrypt(_vault, _label, _context, _plaintext), do: not_loaded()
  def field_encrypt_long(_vault, _label, _context, _plaintext), do: not_loaded()
  def field_decrypt(_vault, _context, _unbound, _field), do: not_loaded()
  def field_decrypt_long(_vault, _context, _unbound, _field), do: not_loaded()
  def field_inspect(_vault, _field), do: not_loaded()

  # lookup
  def lookup_open(_source), do: not_loaded()
  def lookup_hmac(_key, _hash, _value), do: not_loaded()
  def lookup_pbkdf2(_key, _hash, _value, _iterations, _size), do: not_loaded()

  # password
  def password_hash(_password, _parameters), do: not_loaded()
  def password_verify(_password, _hash), do: not_loaded()
  def password_inspect(_hash), do: not_loaded()

  # service_key
  def service_key_create(_vault, _kind, _source), do: not_loaded()
  def service_key_rewrap(_vault, _kind, _key), do: not_loaded()
  def signature_create(_vault, _key, _message), do: not_loaded()
  def signature_verify(_public_key, _message, _signature), do: not_loaded()

  def client_seal(_vault, _key, _client, _purpose, _associated_data, _plaintext),
    do: not_loaded()

  def client_open(_vault, _key, _client, _purpose, _associated_data, _sealed), do: not_loaded()
  def client_public_key(_client), do: not_loaded()
  def mac_key_open(_source), do: not_loaded()
  def mac_create(_key, _message), do: not_loaded()
  def mac_verify(_key, _message, _mac), do: not_loaded()

  # recovery_key
  def recovery_key_generate(_words), do: not_loaded()
  def recovery_key_words(_key), do: not_loaded()
  def recovery_key_parse(_words), do: not_loaded()
  def recovery_key_split(_key, _threshold, _count), do: not_loaded()
  def recovery_key_combine(_shares), do: not_loaded()
  def escrow_public(_id, _source), do: not_loaded()
  def escrow_seal(_public, _fields, _key), do: not_loaded()
  def escrow_open(_id, _source, _fields, _wrapped), do: not_loaded()

  # backup
  def backup_create(_secret, _parameters), do: not_loaded()
  def backup_write(_writer, _vault, _account, _records), do: not_loaded()
  def backup_finish(_writer), do: not_loaded()
  def backup_open(_header, _secret), do: not_loaded()
  def backup_read(_reader, _bytes), do: not_loaded()
  def backup_seal(_reader, _vault, _account, _places), do: not_loaded()
  def backup_drop(_reader), do: not_loaded()

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
