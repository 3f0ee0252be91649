defmodule Kith.Options do
  @moduledoc """
  The options of an instance, checked once when it starts.

  They come from three places, the later ones winning: `use Kith`, the application's environment under the
  module's name, and the child specification.

  ## Which keys open the database

    * `:keys` (required) - the key-encryption keys:
      `[current: {"2026-11", {:env, "KITH_KEY"}}, retired: [{"2025-01", {:file, "/etc/app/old.key"}}]]`.
      New data keys are wrapped with the current key; retired ones still open what they wrapped. The name of
      a key, 1 to 64 printable ASCII characters, is written beside what it wraps: it must never change its
      meaning. A source is

        * `{:env, name}` - an environment variable with 32 bytes in Base64, as `mix kith.gen.key` prints;
        * `{:file, path}` - the same in a file that only its owner may read (mode `0600`);
        * `{:passphrase, {:env, name}, parameters}` or `{:passphrase, {:file, path}, parameters}` - a passphrase of at least
          16 bytes, from which Argon2id derives the key when the instance starts. The parameters are a string that
          `mix kith.gen.passphrase` prints: cost, salt, and a check by which a wrong passphrase is refused at the start. It is not
          secret. Without it the passphrase opens nothing, so keep it where you keep the configuration. Less than 64 MiB,
          three passes or 16 bytes of salt are refused.
        * `{:kms, options}` - a key service has the key, and keeps it; see below.
        * `:development` - a random key that lives as long as the VM. What it wrapped is lost with it. A log line says so at each
          start; in a release and in `MIX_ENV=prod` it is refused.
        * `{:key, <<_::256>>}` - the bytes themselves. They then lie in the memory of the VM, and in the
          options of the supervisor: for tests.

    * `:cipher` - what data keys seal rows with that are drawn from now on: `:aes_256_gcm` (default), or `:chacha20_poly1305` for
      a processor without AES instructions. Data keys that are there keep theirs, and rows of both open;
      `Kith.rotate_keys/2` gives them a successor.

  Variables, files and answers of a key service are read by the native library and never become an Elixir term.

  ## Key services

  `keys: [current: {"kms-2026", {:kms, url: "unix:///run/kms.sock"}}]` has data keys wrapped by an external service, see `Kith.KMS`
  and the guide "Key services". Its options:

    * `:url` (required) - `"unix:///path/of/socket"`, `"https://host:port/path"`, or `"http://host:port/path"`, the last to
      this machine only.
    * `:ca_file` - with `https` required: who may have signed the service's certificate, in PEM. Those of the system are not asked.
    * `:certificate`, `:private_key` - for mutual TLS, paths of files in PEM. The key's is refused unless its mode is strict.
    * `:cleartext` - `true` allows `http` to other machines. Everybody on the way then reads keys. Default `false`.
    * `:connect_timeout`, `:timeout` - milliseconds for a connection, and for request and answer on it. Default 1,000 and 2,000.
    * `:retries` - how often more an attempt is made, of what may be done twice. Default 2.
    * `:pause` - milliseconds for which nothing is asked after a call has failed; who would have asked gets `:unavailable` at
      once. Default 1,000.
    * `:aad` - whether `aad` and `key_version` are sent, which not every service knows. Default `false`.
    * `:fallback` - the id of another key in `:keys`, not a key service's, that wraps new data keys while the service does not
      answer. Default: none, they are not made then.

  `:key_cache` bounds the data keys that a key service has opened and the native library keeps open:

    * `:keys` - how many, 16 to 100,000, each with a page of memory. Default 1,000. One call takes a few at once.
    * `:lifetime` - seconds, however often a key is used. For so long everything goes on while the service is away, and for so long
      a key works that the service refuses from now on. Default 300.
    * `:concurrency` - how many calls to the service run at once; others wait. Default 4.

  ## Where the rows are

    * `:database` - the path of the embedded SQLite database, created when missing. Default `"kith.db"` in
      the working directory. `:memory` is a database without a file: all keys, sessions and messages are lost with
      the instance, and with the process that owns the database should it be started anew. For tests and to try things.
    * `:repo` - instead of `:database`, an Ecto repository on PostgreSQL, or any module with `query/3` and
      `transaction/2` of the same shape.
    * `:prefix` - with `:repo`, the schema of PostgreSQL the tables are in. Default: the one the connection finds
      first.
    * `:synchronous` - `:full` (default) or `:normal`, for the embedded database. With `:normal` a power cut
      may undo the last commits, and with them a ratchet step whose ciphertext is already out: that
      message key would be used twice. A crash of the VM alone is safe with both.

  ## Limits

    * `:minimum_version` - the lowest version of the Signal protocol that is spoken, 3 or 4. With 4 (default), every
      session is post-quantum, and a peer without a Kyber prekey cannot be written to: `:unsupported_version`. 3 also
      speaks with clients of before; a peer that was once seen with version 4 is not accepted with less even then.
    * `:one_time_prekeys` - how many are made at registration and filled up to, 1 to 1,000. Default 100.
    * `:one_time_kyber_prekeys` - the same of Kyber prekeys, 0 to 1,000. Each takes 1.9 KB of the database. When
      none is left, the one of last resort is handed out, again and again. Default 20.
    * `:replenish_below` - new ones are made when fewer than this remain after a claim, or the same share of the Kyber
      prekeys. Default 20.
    * `:prekey_grace_period` - seconds a used one-time prekey still opens another first message that was made
      from the same bundle. Longer forgives slower senders; shorter gives forward secrecy to first messages
      sooner. With 0 it is deleted with the message that used it. Default 604,800 (7 days).
    * `:refresh_after` - seconds without a message from a peer after which the next message to them starts a new
      session, so that one that only one side uses does not stay unhealed. Default 2,592,000 (30 days).
    * `:resend_window` - seconds after which a message is not sent again, though its recipient reports that it did not
      open. Default 86,400 (1 day). It takes `:archive`.
    * `:recovery_limit` - how many messages of one peer a device reports in an hour, and how many reports of one peer it
      answers. Reports are not authenticated; this bounds what a forger can cause. Default 20.
    * `:max_devices` - how many devices a user may have, registered and published together, 1 to 127. Each is a message
      more for everyone who writes to them, and a group has at most 1,000 devices. Default 10.
    * `:max_plaintext` - bytes of one plaintext that is encrypted, at most 1,048,576. Default 65,536.
    * `:unlocked_for` - seconds an account that is locked under a password stays open after `Kith.unlock/4`, 1 to 31,536,000. Default
      43,200 (12 hours).
    * `:unknown_senders` - what becomes of a first message from someone who is neither registered nor published
      here. An envelope says who it is from, and only keys known here can tell whether that is so.
      `:refuse` (default) answers `:not_registered`. `:remember` trusts and remembers the first key seen, for
      instances whose peers are registered elsewhere and whose application vouches for the sender.
    * `:max_attempts` - how often a call that lost the race for a session is tried before `:stale`.
      Default 5.

  ## Message archive

    * `:archive` - whether plaintexts are kept, sealed under a key of their conversation, so that a second delivery
      answers with the plaintext and `Kith.history/4` has something to show. `false` (default); `true`, for ever; or
      `[retention: seconds]`, after which a message disappears. A retention holds for what is written from then on.
      What is kept can be read by a thief of the database *and* the key-encryption key: see "Message archive" in
      `Kith`.

  ## The life of keys

  What follows is done by a process of the instance, or by `Kith.maintain/1`. Of many nodes on one database one does it.

    * `:maintenance_interval` - seconds between two passes, a tenth more or less, 1 to 604,800. The first one comes soon
      after the start. `:off`, or 0, for an application that calls `Kith.maintain/1` by itself. Default 3,600.
    * `:prekey_rotation` - seconds after which a device gets a new signed prekey and a new Kyber prekey of last resort.
      0 for never; then prekeys that were handed out and not used stay for ever too. Default 604,800 (7 days).
    * `:signed_prekey_grace_period` - seconds the ones of before still open first messages, made from a bundle that was
      fetched earlier. After that such a message is answered with `:unknown_prekey`. Longer forgives slower senders;
      whoever steals the database *and* the key-encryption key can open recorded first messages that far back, those made
      without one-time prekeys. Default 2,592,000 (30 days).
    * `:skipped_key_lifetime` - seconds the key of a message that has not arrived is kept. A message that comes later is
      `:duplicate`. 0 keeps them as long as the session has room for them. Default 2,592,000 (30 days).
    * `:unacknowledged_session_lifetime` - seconds after which a session in which nobody has answered is put away, so that
      the next message starts a new one; an answer still opens. Not even 0, for never, sends in one that is older
      than 30 days. Default 2,592,000 (30 days).

  ## Other

    * `:name` - any term. `Kith` by default; a module that says `use Kith` is its own name.
    * `:clock` - for tests: a function without arguments that returns the time in milliseconds since 1970. All periods
      above are measured with it; see `Kith.Testing.Clock`. Default: the time of the system.
  """

  alias Kith.{KeySource, Validation}

  # A hundred years.
  @max_seconds 3_155_760_000

  @key_cache %{keys: 1_000, lifetime: 300, concurrency: 4}

  @derive {Inspect, except: [:keys]}
  defstruct name: Kith,
            keys: nil,
            key_cache: [],
            cipher: :aes_256_gcm,
            database: "kith.db",
            repo: nil,
            prefix: nil,
            synchronous: :full,
            minimum_version: 4,
            one_time_prekeys: 100,
            one_time_kyber_prekeys: 20,
            replenish_below: 20,
            prekey_grace_period: 604_800,
            refresh_after: 2_592_000,
            resend_window: 86_400,
            recovery_limit: 20,
            max_devices: 10,
            max_plaintext: 65_536,
            unlocked_for: 43_200,
            unknown_senders: :refuse,
            max_attempts: 5,
            archive: false,
            maintenance_interval: 3_600,
            prekey_rotation: 604_800,
            signed_prekey_grace_period: 2_592_000,
            skipped_key_lifetime: 2_592_000,
            unacknowledged_session_lifetime: 2_592_000,
            clock: nil

  @typedoc "Where a key-encryption key comes from."
  @type source ::
          {:env, String.t()}
          | {:file, Path.t()}
          | {:passphrase, {:env, String.t()} | {:file, Path.t()}, parameters :: String.t()}
          | {:kms, keyword}
          | :development
          | {:key, <<_::256>>}

  @type t :: %__MODULE__{
          name: term,
          keys: keyword,
          key_cache: keyword,
          cipher: :aes_256_gcm | :chacha20_poly1305,
          database: Path.t() | :memory,
          repo: nil | module,
          prefix: nil | String.t(),
          synchronous: :full | :normal,
          minimum_version: 3 | 4,
          one_time_prekeys: 1..1000,
          one_time_kyber_prekeys: 0..1000,
          replenish_below: 0..1000,
          prekey_grace_period: non_neg_integer,
          refresh_after: pos_integer,
          resend_window: non_neg_integer,
          recovery_limit: non_neg_integer,
          max_devices: 1..127,
          max_plaintext: pos_integer,
          unlocked_for: pos_integer,
          unknown_senders: :refuse | :remember,
          max_attempts: pos_integer,
          archive: false | [retention: nil | pos_integer],
          maintenance_interval: non_neg_integer | :off,
          prekey_rotation: non_neg_integer,
          signed_prekey_grace_period: non_neg_integer,
          skipped_key_lifetime: non_neg_integer,
          unacknowledged_session_lifetime: non_neg_integer,
          clock: nil | (() -> pos_integer)
        }

  @doc """
  Returns the options as a struct, or says what is wrong with them.

  Tests of an application check their production options with it.

      iex> Kith.Options.new(keys: [current: {"2026", {:env, "KITH_KEY"}}], one_time_prekey: 10)
      {:error, "unknown option :one_time_prekey, did you mean :one_time_prekeys?"}

      iex> Kith.Options.new(database: "kith.db")
      {:error, "expected :keys to be given, for example [current: {\\"2026\\", {:env, \\"KITH_KEY\\"}}]"}
  """
  @spec new(keyword) :: {:ok, t} | {:error, String.t()}
  def new(options) do
    with :ok <- Validation.validate(options, schema()),
         :ok <- one_store(options),
         :ok <- keys_given(options),
         struct = struct!(__MODULE__, archive_settings(options)),
         :ok <- threshold(struct) do
      {:ok, struct}
    end
  end

  @doc "Same as `new/1`, raising `ArgumentError`."
  @spec new!(keyword) :: t
  def new!(options) do
    case new(options) do
      {:ok, options} -> options
      {:error, message} -> raise ArgumentError, message
    end
  end

  @doc false
  def max_seconds, do: @max_seconds

  @doc false
  # Options of `use`, then the environment of the application, then the child specification.
  def merge(module, used, given) do
    environment =
      case used[:otp_app] do
        nil -> []
        otp_app -> Application.get_env(otp_app, module, [])
      end

    used
    |> Keyword.delete(:otp_app)
    |> Keyword.merge(environment)
    |> Keyword.merge(given)
    |> Keyword.put(:name, module)
  end

  @doc false
  # A supervisor prints the arguments of a child that fails; a function prints as a function.
  def veil(options) when is_list(options) do
    case Keyword.keyword?(options) and options[:keys] do
      keys when is_list(keys) -> Keyword.put(options, :keys, veil_keys(keys))
      _ -> options
    end
  end

  def veil(options), do: options

  @doc false
  # {current id, [{id, source}]} as the vault takes them.
  def key_sources(%__MODULE__{keys: keys}) do
    {current, _} = keys[:current]
    all = [keys[:current] | keys[:retired] || []]
    {current, Enum.map(all, fn {id, source} -> {id, KeySource.native(source)} end)}
  end

  @doc false
  # As the vault takes them.
  def key_limits(%__MODULE__{key_cache: given}) do
    %{keys: keys, lifetime: lifetime, concurrency: concurrency} =
      Map.merge(@key_cache, Map.new(given))

    %{keys: keys, lifetime: lifetime * 1_000, concurrency: concurrency}
  end

  defp veil_keys(keys) do
    Enum.map(keys, fn
      {:current, named} -> {:current, veil_named(named)}
      {:retired, list} when is_list(list) -> {:retired, Enum.map(list, &veil_named/1)}
      other -> other
    end)
  end

  defp veil_named({id, {:key, bytes}}) when is_binary(bytes), do: {id, {:key, fn -> bytes end}}
  defp veil_named(other), do: other

  @doc false
  def unveil({:key, fun}) when is_function(fun, 0), do: {:key, fun.()}
  def unveil(source), do: source

  defp schema do
    [
      name: :any,
      keys: {:custom, &keys/1},
      key_cache: {:custom, &key_cache/1},
      cipher: {:one_of, [:aes_256_gcm, :chacha20_poly1305]},
      database: {:custom, &database/1},
      repo: {:module, [query: 3, transaction: 2]},
      prefix: {:custom, &Kith.Store.Repo.prefix/1},
      synchronous: {:one_of, [:full, :normal]},
      minimum_version: {:one_of, [3, 4]},
      one_time_prekeys: {:integer, 1..1000},
      one_time_kyber_prekeys: {:integer, 0..1000},
      replenish_below: {:integer, 0..1000},
      prekey_grace_period: {:integer, 0..31_536_000},
      refresh_after: {:integer, 3_600..31_536_000},
      resend_window: {:integer, 0..31_536_000},
      recovery_limit: {:integer, 0..1000},
      max_devices: {:integer, 1..127},
      max_plaintext: {:integer, 1..1_048_576},
      unlocked_for: {:integer, 1..31_536_000},
      unknown_senders: {:one_of, [:refuse, :remember]},
      max_attempts: {:integer, 1..100},
      archive: {:custom, &archive/1},
      maintenance_interval: {:custom, &interval/1},
      prekey_rotation: {:integer, 0..31_536_000},
      signed_prekey_grace_period: {:integer, 0..31_536_000},
      skipped_key_lifetime: {:integer, 0..31_536_000},
      unacknowledged_session_lifetime: {:integer, 0..31_536_000},
      clock: {:custom, &clock/1}
    ]
  end

  defp database(:memory), do: :ok

  defp database(path) do
    if is_binary(path) and path != "" and String.valid?(path),
      do: :ok,
      else:
        {:error,
         "expected :database to be a string that is not empty or :memory, got: #{inspect(path)}"}
  end

  defp clock(clock) when clock == nil or is_function(clock, 0), do: :ok

  defp clock(other),
    do:
      {:error,
       "expected :clock to be a function without arguments that returns milliseconds, got: #{inspect(other)}"}

  defp archive(archive) when is_boolean(archive), do: :ok
  defp archive([]), do: :ok
  defp archive(retention: nil), do: :ok
  defp archive(retention: seconds) when seconds in 1..@max_seconds//1, do: :ok

  defp archive(other) do
    {:error,
     "expected :archive to be true, false or [retention: seconds] with 1 to #{@max_seconds} seconds, " <>
       "got: #{inspect(other)}"}
  end

  defp archive_settings(options) do
    case options[:archive] do
      true -> Keyword.put(options, :archive, [])
      _ -> options
    end
  end

  defp one_store(options) do
    if Keyword.has_key?(options, :repo) and Keyword.has_key?(options, :database),
      do: {:error, "expected either :repo or :database, got both"},
      else: :ok
  end

  defp keys_given(options) do
    if Keyword.has_key?(options, :keys),
      do: :ok,
      else:
        {:error,
         ~s(expected :keys to be given, for example [current: {"2026", {:env, "KITH_KEY"}}])}
  end

  defp threshold(%{replenish_below: below, one_time_prekeys: target}) when below > target,
    do:
      {:error,
       "expected :replenish_below to be at most :one_time_prekeys (#{target}), got: #{below}"}

  defp threshold(_), do: :ok

  defp interval(:off), do: :ok
  defp interval(seconds) when is_integer(seconds) and seconds in 0..604_800, do: :ok

  defp interval(other),
    do:
      {:error,
       "expected :maintenance_interval to be :off or an integer from 0 to 604800, got: #{inspect(other)}"}

  defp key_cache(options) do
    schema = [
      keys: {:integer, 16..100_000},
      lifetime: {:integer, 1..86_400},
      concurrency: {:integer, 1..64}
    ]

    with {:error, message} <- Validation.validate(options, schema),
         do: {:error, "in :key_cache, " <> message}
  end

  # No message below prints a value: a key may stand in any place by mistake.
  defp keys(keys) do
    cond do
      not Keyword.keyword?(keys) ->
        {:error, "expected :keys to be a keyword list with :current and :retired"}

      unknown = Enum.find(Keyword.keys(keys), &(&1 not in [:current, :retired])) ->
        {:error, "expected :keys to have :current and :retired only, got: #{inspect(unknown)}"}

      not Keyword.has_key?(keys, :current) ->
        {:error, "expected :keys to have a :current key, {id, source}"}

      not is_list(keys[:retired] || []) ->
        {:error, "expected :retired in :keys to be a list of {id, source}"}

      true ->
        named(keys)
    end
  end

  defp named(keys) do
    retired = keys[:retired] || []

    checked =
      [{":current", keys[:current]} | Enum.map(retired, &{"each of :retired", &1})]
      |> Enum.reduce_while(:ok, fn {place, key}, :ok ->
        case key(place, key) do
          :ok -> {:cont, :ok}
          error -> {:halt, error}
        end
      end)

    with :ok <- checked do
      ids = Enum.map([keys[:current] | retired], &elem(&1, 0))

      case ids -- Enum.uniq(ids) do
        [] -> :ok
        [id | _] -> {:error, "expected the ids in :keys to differ, got twice: #{inspect(id)}"}
      end
    end
  end

  defp key(place, {id, source}) do
    if key_id?(id),
      do: KeySource.check(place, id, source),
      else:
        {:error,
         "expected the id of #{place} in :keys to be 1 to 64 printable ASCII characters without spaces"}
  end

  defp key(place, _), do: {:error, "expected #{place} in :keys to be {id, source}"}

  defp key_id?(id) do
    is_binary(id) and byte_size(id) in 1..64 and
      Enum.all?(:binary.bin_to_list(id), &(&1 in 0x21..0x7E))
  end
end
