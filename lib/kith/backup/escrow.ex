defmodule Kith.Backup.Escrow do
  @moduledoc """
  Recovery keys that somebody else can unwrap: for people who lose their words, where they have agreed to it.

  Nothing is in escrow unless the application calls `deposit/5`. Whoever holds the service key can then read every backup of the user
  that was made under this recovery key. Say so where you ask for consent, in a text with a version.

      {:ok, public} = Escrow.public_key({"escrow-2026", {:file, "/run/keys/escrow"}})

      # on the server, which needs the public half only
      {:ok, escrow} = Escrow.deposit(MyApp.Kith, "anna", key, {"escrow-2026", {:public, public}}, by: "anna", text: "escrow-3")

      # an administrator, where the private half is
      {:ok, key} =
        Escrow.unwrap(MyApp.Kith, "anna", {"escrow-2026", {:file, "/run/keys/escrow"}},
          by: "admin:carla", purpose: "anna asked for it, ticket 4711")

  ## The service key

  It is an X25519 key, whose private half is 32 bytes as `mix kith.gen.key` makes them, from `{:file, path}` or `{:env, name}` as in
  `Kith.Options`, or `{:key, bytes}` for tests. Its public half, `{:public, bytes}`, is enough to deposit: keep the private one
  where this server is not. A key is wrapped by HPKE (RFC 9180; X25519, HKDF-SHA256, AES-256-GCM) and bound to the user and to every
  column of the consent, so that nobody who writes to the database makes a consent of another. It is not post-quantum; it lies in the database, not on
  a wire.

  ## Consent

  A deposit records who consented, to which version of the text, and when. `withdraw/3` deletes the wrapped key and keeps that record.
  Backups of the database still have it. Without a deposit that was not withdrawn `unwrap/4` is `:no_consent`.

  ## What is recorded

  Every `unwrap/4`, also one that is refused, is a row with who, why, when and how it went, before the key is returned, and the event
  `[:kith, :backup, :unwrap, :stop]`. Rows are never changed. Who holds the private half and a copy of the database can do without this
  function, and then nothing is recorded.
  """

  alias Kith.{Address, Envelope, Error, Instance, Native, Telemetry}
  alias Kith.Backup.RecoveryKey
  alias Kith.Store.{Escrows, Repo}

  @typedoc "The name of a service key, and its private half or its public one."
  @type service_key ::
          {String.t(), Kith.Options.source()} | {String.t(), {:public, <<_::256>>}}

  @typedoc "What was agreed to."
  @type consent :: %{
          id: String.t(),
          service_key: String.t(),
          by: String.t(),
          text: String.t(),
          at: integer,
          withdrawn_by: nil | String.t(),
          withdrawn_at: nil | integer
        }

  @typedoc "One call of `unwrap/4`. `:result` is `:ok` or the reason of its error."
  @type unwrapped :: %{
          id: String.t(),
          escrow: nil | String.t(),
          by: String.t(),
          purpose: String.t(),
          at: integer,
          result: :ok | Error.reason()
        }

  @doc """
  Returns the public half of a service key.

  Raises `ArgumentError` for a key that cannot be read.
  """
  @spec public_key(service_key) :: {:ok, <<_::256>>} | {:error, Error.t()}
  def public_key({_id, {:public, <<_::binary-32>> = public}}), do: {:ok, public}

  def public_key(service_key) do
    {id, source} = private!(service_key)
    explained(Native.escrow_public(id, source), nil, :escrow_public)
  end

  @doc """
  Puts a recovery key into escrow.

    * `:by` - who consented, in the application's words: 1 to 255 bytes. Required.
    * `:text` - the version of the text they agreed to. Required.

  Whether they did, the application knows. Errors: `:malformed` for a public half that is none, and those of the machinery.
  """
  @spec deposit(Kith.name(), Address.user(), RecoveryKey.t(), service_key, keyword) ::
          {:ok, consent} | {:error, Error.t()}
  def deposit(name, user, %RecoveryKey{reference: key}, {service_key, _} = given, consent) do
    instance = Instance.fetch!(name)
    {user, 1} = Address.new!(user)
    service_key!(service_key)
    [by: by, text: text] = given!(consent, [:by, :text])

    span(instance, :escrow, user, by, fn ->
      escrow = %{
        id: id(),
        service_key: service_key,
        by: by,
        text: text,
        at: Instance.now(instance)
      }

      with {:ok, public} <- public_key(given),
           {:ok, wrapped} <-
             explained(
               Native.escrow_seal(public, fields(user, escrow), key),
               instance,
               :escrow_seal
             ) do
        Instance.transaction(instance, fn repo ->
          Escrows.insert(repo, user, Map.put(escrow, :wrapped, wrapped))
          {{:ok, Map.merge(escrow, %{withdrawn_by: nil, withdrawn_at: nil})}, []}
        end)
      end
    end)
  end

  @doc """
  Returns what a user has consented to, the newest first, withdrawn or not.

  Errors: those of the machinery.
  """
  @spec consents(Kith.name(), Address.user()) :: {:ok, [consent]} | {:error, Error.t()}
  def consents(name, user) do
    {user, 1} = Address.new!(user)

    Instance.transaction(Instance.fetch!(name), fn repo ->
      {{:ok, Enum.map(Escrows.list(repo, user), &Map.delete(&1, :wrapped))}, []}
    end)
  end

  @doc """
  Withdraws all consents of a user: deletes the wrapped keys. Returns how many there were.

    * `:by` - who withdrew. Required.

  Errors: those of the machinery.
  """
  @spec withdraw(Kith.name(), Address.user(), by: String.t()) ::
          {:ok, non_neg_integer} | {:error, Error.t()}
  def withdraw(name, user, options) do
    instance = Instance.fetch!(name)
    {user, 1} = Address.new!(user)
    [by: by] = given!(options, [:by])

    Instance.transaction(instance, fn repo ->
      {{:ok, Escrows.withdraw(repo, user, by, Instance.now(instance))}, []}
    end)
  end

  @doc """
  Unwraps the newest recovery key of a user, and records it.

    * `:by` - who does it. Required.
    * `:purpose` - why. Required.

  Raises inside a transaction, which could undo the record. Errors: `:no_consent`; `:key_not_found` when it was wrapped under another service
  key, by its name; `:corrupted_state` when it does not open: another key under the same name, or somebody has edited the row; and
  those of the machinery.
  """
  @spec unwrap(Kith.name(), Address.user(), service_key, keyword) ::
          {:ok, RecoveryKey.t()} | {:error, Error.t()}
  def unwrap(name, user, service_key, options) do
    instance = Instance.fetch!(name)
    {user, 1} = Address.new!(user)
    {id, source} = private!(service_key)
    [by: by, purpose: purpose] = given!(options, [:by, :purpose])

    if Repo.in_transaction?(instance.repo),
      do: raise(ArgumentError, "expected to be called outside of a transaction")

    # Before anything is recorded: a key that cannot be read is the caller's mistake.
    {:ok, _} = public_key(service_key)

    span(instance, :unwrap, user, by, fn ->
      Instance.transaction(instance, fn repo ->
        escrow = Enum.find(Escrows.list(repo, user), &(&1.withdrawn_at == nil))
        result = open(instance, user, escrow, {id, source})

        Escrows.insert_unwrap(repo, user, %{
          id: id(),
          escrow: escrow && escrow.id,
          by: by,
          purpose: purpose,
          at: Instance.now(instance),
          result: with({:error, %Error{reason: reason}} <- result, do: reason, else: (_ -> :ok))
        })

        # An error is returned, so that its row stays.
        {result, []}
      end)
    end)
  end

  defp open(_instance, _user, nil, _key), do: {:error, Error.new(:no_consent)}

  defp open(_instance, _user, %{service_key: other}, {id, _source}) when other != id,
    do: {:error, Error.new(:key_not_found, "wrapped under the service key #{inspect(other)}")}

  defp open(instance, user, escrow, {id, source}) do
    opened = Native.escrow_open(id, source, fields(user, escrow), escrow.wrapped || "")

    case explained(opened, instance, :escrow_open) do
      {:ok, nil} -> {:error, Error.new(:corrupted_state)}
      {:ok, reference} -> {:ok, %RecoveryKey{reference: reference}}
      error -> error
    end
  end

  @doc """
  Returns the calls of `unwrap/4` for a user, the newest first.

  Errors: those of the machinery.
  """
  @spec unwraps(Kith.name(), Address.user()) :: {:ok, [unwrapped]} | {:error, Error.t()}
  def unwraps(name, user) do
    {user, 1} = Address.new!(user)

    Instance.transaction(Instance.fetch!(name), fn repo ->
      {{:ok, Escrows.unwraps(repo, user)}, []}
    end)
  end

  # What the wrapped key is bound to.
  defp fields(user, escrow) do
    [user, escrow.id, escrow.service_key, escrow.by, escrow.text, Integer.to_string(escrow.at)]
  end

  defp span(instance, event, user, by, fun) do
    metadata = %{instance: instance.name, user_id: user, by: by}

    Telemetry.span([:kith, :backup, event], metadata, fn ->
      result = fun.()
      {result, %{}, Telemetry.outcome(result)}
    end)
  end

  defp id, do: Envelope.uuid(:crypto.strong_rand_bytes(16))

  defp explained({:error, {:invalid, message}}, _instance, _function),
    do: raise(ArgumentError, "the service key cannot be used: " <> message)

  defp explained(result, instance, function),
    do: result |> Telemetry.watch(instance, function) |> Error.from_native()

  defp private!({id, {kind, value} = source})
       when is_binary(id) and kind in [:env, :file, :key] and is_binary(value),
       do: {id, source}

  # What is given in its place may be a key.
  defp private!(_other),
    do: raise(ArgumentError, "expected a service key as {name, {:file, path}} or {:env, name}")

  defp service_key!(id) do
    if not (is_binary(id) and byte_size(id) in 1..64 and String.printable?(id)),
      do: raise(ArgumentError, "expected the name of the service key to be 1 to 64 characters")
  end

  defp given!(options, keys) do
    if not Keyword.keyword?(options) or Enum.sort(Keyword.keys(options)) != Enum.sort(keys),
      do: raise(ArgumentError, "expected #{Enum.map_join(keys, " and ", &inspect/1)}, each once")

    for key <- keys do
      value = options[key]

      if not (is_binary(value) and byte_size(value) in 1..255 and String.valid?(value) and
                not String.contains?(value, <<0>>)),
         do: raise(ArgumentError, "expected #{inspect(key)} to be a string of 1 to 255 bytes")

      {key, value}
    end
  end
end
