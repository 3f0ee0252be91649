defmodule Kith.Backup do
  @moduledoc """
  A user's account in one encrypted file, and back: the recovery kit.

      {:ok, key} = Kith.Backup.RecoveryKey.generate()
      {:ok, words} = Kith.Backup.RecoveryKey.words(key)
      # shown to anna, once

      {:ok, backup} = Kith.Backup.export(MyApp.Kith, "anna", key)
      backup |> Stream.into(File.stream!("anna.kith")) |> Stream.run()

      # another day, on another server
      {:ok, key} = Kith.Backup.RecoveryKey.parse(words)
      {:ok, restored} = Kith.Backup.restore(MyApp.Kith, "anna", File.stream!("anna.kith"), key)

  A backup has the identity key of the user, the devices with their registration ids and prekeys, what was remembered of other
  people's identities and whether it was verified, the sessions, and the message archive. It is for one user; what saves a whole database is
  in `docs/guides/backups.md`. `docs/guides/recovery.md` is about offering it to people.

  ## The secret

  A backup opens with one of

    * `{:passphrase, passphrase}` - 8 to 1,024 bytes, stretched with Argon2id. Whoever finds the file can try passphrases as
      long as they like;
    * a `Kith.Backup.RecoveryKey` - 128 or 256 random bits, which a person keeps as words, or several people as shares. There is nothing to
      try.

  Neither the server nor anyone else opens it without. No key of the user becomes an Elixir term: rows are opened and
  written, and read and sealed again, inside the native library.

  ## What a restore does with keys

  A backup is older than the account it restores, and may be restored while the account goes on elsewhere. So

    * no session goes on: those of the backup open what is on its way in them, and the next message to each peer starts a new
      one. No message key is used twice, and no prekey of the backup is handed out again; late first messages open with them;
    * the account gets a new data key, wrapped under the key of the instance it is restored to; histories are sealed under the thread keys
      that are there, or new ones;
    * the identity stays, and with it every safety number.

  A note to oneself (`Kith.encrypt/5` to oneself) is sealed under the data key of the account and lies with the application: one of
  before does not open after a restore. With `:archive` its text is in the history.

  What is remembered of first messages that were opened since the backup was made is not in it: such a message, sent again,
  opens again.

  ## Whose backup

  A backup says what its maker wrote into it, and everybody can make one under a passphrase of their own. `restore/5` takes the user
  it is for and refuses another's; all rows it writes are that user's. A history that somebody restored from a file is what they say
  they have read, no evidence.

  ## Errors

    * `:wrong_secret` - the secret is not the one it was made with, or the first 86 bytes were changed;
    * `:tampered` - it was cut, continued, reordered or edited. Nothing of it is used then, and nothing was changed;
    * `:malformed` - it is no backup, or not one of the user; Argon2id would do less work than is accepted;
    * `:too_large` - Argon2id would do more work than is accepted, or there are more devices than `:max_devices`;
    * `:unsupported_version` - a later release wrote it;
    * `:busy` - see `Kith.Password`, whose queue a passphrase stands in.
  """

  import Kith.Backup.Engine
  import Kith.Store.WrappedKey, only: [is_locked: 1]

  alias Kith.{Address, Error, Instance, Maintenance, Telemetry, Unlocked, Validation}
  alias Kith.Backup.{Export, Import, RecoveryKey, Source}
  alias Kith.Store.{Accounts, Backups}

  # 256 MiB and three passes: a file is tried offline.
  @parameters [memory: 262_144, passes: 3, parallelism: 4]
  @schema [
    history: {:one_of, [true, false]},
    memory: {:integer, 19_456..262_144},
    passes: {:integer, 1..53},
    parallelism: {:integer, 1..64}
  ]

  @typedoc "What opens a backup."
  @type secret :: {:passphrase, binary} | RecoveryKey.t()

  @typedoc "What was restored."
  @type restored :: %{
          user: Address.user(),
          devices: [Address.device()],
          exported_at: integer,
          sessions: non_neg_integer,
          messages: non_neg_integer,
          skipped: non_neg_integer
        }

  @doc """
  Returns the backup of a user as a stream of binaries, to be written wherever it is kept.

  Rows are read while the stream is, some at a time, so memory does not grow with the history. It is read once. It raises
  `Kith.Error` when the database fails in the middle; what was written until then is no backup. What changes meanwhile
  may be in it or not; each session is in it as it was at one moment. When the data key of the account changes meanwhile, or the account is
  locked, it raises `:stale` or `:locked`. A row that does not open is left out and counted in the event
  `[:kith, :backup, :export, :stop]`; without the identity there is no backup.

    * `:history` - whether the message archive of the user is in it, what has not expired. Default `true`.
    * `:memory`, `:passes`, `:parallelism` - of Argon2id, as in `Kith.Password`: at least 19,456 KiB, and twice that times
      the passes. Defaults 262,144 (256 MiB), 3 and 4.

  An account that is locked under a password is exported while it is unlocked on this node, else it is `:locked`. What was restored from
  the backup is open: `Kith.lock_with_password/4` locks it again.

  Errors: `:not_registered`, `:locked`, `:key_not_found` when the private keys live elsewhere, `:malformed` for a passphrase that is too short,
  `:too_large` for one that is too long, `:busy`, and those of the machinery.
  """
  @spec export(Kith.name(), Address.user(), secret, keyword) ::
          {:ok, Enumerable.t()} | {:error, Error.t()}
  def export(name, user, secret, options \\ []) do
    instance = Instance.fetch!(name)
    {user, 1} = Address.new!(user)
    secret = secret!(secret)
    options = Validation.validate!(options, @schema)
    parameters = parameters!(options)

    with {:ok, account} <- account(instance, user),
         {:ok, {writer, header}} <- derive(instance, :backup_create, [secret, parameters], secret) do
      history? = Keyword.get(options, :history, true)
      {:ok, Export.stream(instance, account, {writer, header}, history?)}
    end
  end

  defp account(instance, user) do
    Instance.transaction(instance, fn repo ->
      devices = Backups.devices(repo, user)
      data_key = Accounts.data_key(repo, user)

      cond do
        devices == [] -> {{:error, Error.new(:not_registered)}, []}
        data_key == nil -> {{:error, Error.new(:key_not_found)}, []}
        Enum.all?(devices, &(List.last(&1) == nil)) -> {{:error, Error.new(:key_not_found)}, []}
        locked?(instance, {user, data_key}) -> {{:error, Error.new(:locked)}, []}
        true -> {{:ok, {user, data_key}}, []}
      end
    end)
  end

  defp locked?(instance, {_, data_key} = account),
    do: is_locked(data_key) and Unlocked.account(instance, account) == account

  @doc """
  Reads a backup to its end and says what is in it. Nothing is written.

  For whoever has written down words and wants to know that they are the right ones, and that the file is whole. Takes what
  `restore/5` takes.
  """
  @spec verify(Kith.name(), Enumerable.t() | binary, secret) ::
          {:ok, %{user: Address.user(), exported_at: integer, records: non_neg_integer}}
          | {:error, Error.t()}
  def verify(name, backup, secret) do
    instance = Instance.fetch!(name)
    secret = secret!(secret)

    Telemetry.span([:kith, :backup, :verify], %{instance: instance.name}, fn ->
      result =
        Source.reading(instance, backup, secret, fn reader, chunks ->
          Source.fold(instance, reader, chunks, %{user: nil, records: 0, whole?: false}, &look/3)
        end)

      case result do
        {:ok, %{size: size} = seen} ->
          {{:ok, Map.take(seen, [:user, :exported_at, :records])}, %{size: size}, outcome(result)}

        error ->
          {error, %{size: 0}, outcome(error)}
      end
    end)
  end

  defp outcome(result), do: Telemetry.outcome(result)

  defp look(instance, reader, {records, seen}) do
    case native(instance, :backup_drop, [reader]) do
      :ok -> Enum.reduce_while(records, {:ok, seen}, &look_at/2)
      error -> error
    end
  end

  defp look_at({:account, user, at}, {:ok, %{user: nil} = seen}),
    do: {:cont, {:ok, Map.merge(seen, %{user: user, exported_at: at, records: 1})}}

  defp look_at({:ending, count}, {:ok, %{records: count, whole?: false, user: user} = seen})
       when user != nil,
       do: {:cont, {:ok, %{seen | whole?: true}}}

  defp look_at(record, {:ok, %{user: user, whole?: false} = seen})
       when user != nil and elem(record, 0) not in [:account, :ending],
       do: {:cont, {:ok, %{seen | records: seen.records + 1}}}

  defp look_at(_record, _seen), do: {:halt, malformed()}

  @doc """
  Restores a user from a backup: an enumerable of binaries, such as `File.stream!(path)`, or a binary.
  A file that is streamed through something else has to be read by bytes, since reading by lines changes line endings.

  All of it happens in one transaction, which ends with the last byte of the backup: give it a file and no slow connection, since with the embedded
  database nobody else writes meanwhile. Inside a transaction of the application it joins that one. A backup that is not whole
  leaves nothing behind.

  A user who has keys here is `:already_registered`, also on a device whose keys live elsewhere.

    * `:replace` - `true` unregisters them first, with all that `Kith.unregister/2` deletes. Default `false`.
    * `:history` - whether messages are restored. Default `true`. They are not where `:archive` is off, and do not outlive its
      retention.

  Stop the account where it was before, if it is still there: two servers with one identity confuse its peers, though no key
  is used twice.

  `:sessions` and `:messages` are how many were restored, `:skipped` how many messages were not.

  Errors: see above.
  """
  @spec restore(Kith.name(), Address.user(), Enumerable.t() | binary, secret, keyword) ::
          {:ok, restored} | {:error, Error.t()}
  def restore(name, user, backup, secret, options \\ []) do
    instance = Instance.fetch!(name)
    {user, 1} = Address.new!(user)
    secret = secret!(secret)
    schema = [replace: {:one_of, [true, false]}, history: {:one_of, [true, false]}]

    options =
      Keyword.merge([replace: false, history: true], Validation.validate!(options, schema))

    metadata = %{instance: instance.name, user_id: user}

    Telemetry.span([:kith, :backup, :restore], metadata, fn ->
      result =
        Source.reading(instance, backup, secret, fn reader, chunks ->
          Import.run(instance, user, reader, chunks, Map.new(options))
        end)

      case result do
        {:ok, state} ->
          Maintenance.request(instance, for(device <- state.devices, do: {user, device}))
          counts = %{size: state.size, sessions: state.sessions, messages: state.messages}
          {{:ok, restored(state)}, counts, outcome(result)}

        error ->
          {error, %{size: 0, sessions: 0, messages: 0}, outcome(error)}
      end
    end)
  end

  defp restored(state) do
    state
    |> Map.take([:user, :exported_at, :sessions, :messages, :skipped])
    |> Map.put(:devices, Enum.sort(state.devices))
  end

  # What is given in its place may well be a secret.
  defp secret!({:passphrase, passphrase} = secret) when is_binary(passphrase), do: secret
  defp secret!(%RecoveryKey{reference: reference}), do: {:recovery_key, reference}

  defp secret!(_other),
    do: raise(ArgumentError, "expected {:passphrase, binary} or a Kith.Backup.RecoveryKey")

  defp parameters!(options) do
    options = Keyword.merge(@parameters, Keyword.delete(options, :history))
    {memory, passes} = {options[:memory], options[:passes]}

    if (memory * passes) not in 38_912..1_048_576,
      do:
        raise(
          ArgumentError,
          "expected :memory times :passes to be from 38912 to 1048576, got: #{memory} times #{passes}"
        )

    {memory, passes, options[:parallelism]}
  end
end
