defmodule Kith.Vault do
  @moduledoc ~S"""
  Encrypts fields of the application's own tables. It can take the place of `Cloak.Vault`.

      defmodule MyApp.Vault do
        use Kith.Vault, otp_app: :my_app
      end

      config :my_app, MyApp.Vault,
        current: :"2026",
        ciphers: [
          "2026": {Kith.Vault, id: "2026-11", key: {:file, "/etc/my_app/vault.key"}},
          cloak: {Cloak.Ciphers.AES.GCM, tag: "AES.GCM.V1", iv_length: 12, key: {:env, "CLOAK_KEY"}}
        ]

      {:ok, ciphertext} = MyApp.Vault.encrypt("anna@example.com")
      {:ok, "anna@example.com"} = MyApp.Vault.decrypt(ciphertext)

  `mix kith.gen.key` makes a key. `Kith.Ecto.Binary` and its siblings are types for fields of an Ecto schema; `Kith.Vault.Migrator` brings the rows of
  a table under the current cipher. No instance of Kith is needed, and none of its tables. The guide "Moving from Cloak" takes an
  application over step by step.

  ## Starting

  The keys are taken from their sources once, at the first call or by `start_link/1`, and are then in Rust. A vault works without being
  started: in migrations, in `bin/my_app eval`, while other modules are compiled. Put it under your supervisor all the same, and a wrong
  configuration is known when the application starts:

      children = [MyApp.Vault, MyApp.Repo, ...]

  `start_link/1` takes options that replace those of the configuration. `init/1` may be defined, as with Cloak, to complete them: it
  takes the options and returns `{:ok, options}`. To read a changed configuration without a restart, call `open!/2`.

  ## Options

    * `:ciphers` - a keyword list of `label: {module, options}`. All of them decrypt. What a field begins with says which one it is for, so
      no two may have the same tag or id. Required.
    * `:current` - the label of the one that encrypts. It may be left out where there is one cipher, and where all of them are
      Cloak's: then it is the first, as with Cloak.
    * `:json_library` - a module with `encode!/1` and `decode!/1`, for maps and lists. Default: `Jason`, or else the `JSON` of Elixir 1.18.

  The modules of ciphers are names; Cloak need not be there.

  | module | options | |
  | --- | --- | --- |
  | `Kith.Vault` | `:id`, `:key` | AES-256-GCM, with the key's id in every field. The id is 1 to 64 visible ASCII characters; it may never change while there are fields with it. The label may. |
  | `Cloak.Ciphers.AES.GCM` | `:tag`, `:key`, `:iv_length` | the bytes of Cloak, both ways. `:iv_length` is 16, which is Cloak's default, or 12. |
  | `Cloak.Ciphers.AES.CTR` | `:tag`, `:key`, `:unsafe_write` | reads what Cloak wrote. Writes only with `unsafe_write: true`. |
  | `Cloak.Ciphers.Deprecated.AES.GCM` | `:module_tag`, `:tag`, `:key` | reads what Cloak up to 0.6 wrote |
  | `Cloak.Ciphers.Deprecated.AES.CTR` | `:module_tag`, `:tag`, `:key` | reads what Cloak up to 0.6 wrote |

  `:key` is `{:env, name}` or `{:file, path}` with the Base64 of 32 bytes. A file is refused unless its mode keeps it from everyone but its owner. Such a key is
  never an Elixir term. The environment is that with which the VM was started: `System.put_env/2` does not change it. For tests, and for an `init/1` that was written for Cloak, it may be the 32 bytes themselves or `{:key, 32 bytes}`; then it is in
  the memory of the VM, as with Cloak.

  **AES.CTR is not authenticated.** A damaged field, and one under another key, decrypts to other bytes, and no code can notice. The types for
  numbers, dates, maps and lists notice what does not parse; text has nothing to notice it by. Move such columns to another cipher.

  One key of AES-256-GCM is good for 2^32 fields (NIST SP 800-38D, section 8.3). Take a new one long before.

  ## Binding a field to its row

  A field that is copied to another row or column decrypts there, unless it is bound to its place:

      context = ["users", "email", user.id]
      {:ok, ciphertext} = MyApp.Vault.encrypt("anna@example.com", context: context)
      {:ok, "anna@example.com"} = MyApp.Vault.decrypt(ciphertext, context: context)

  A context is a string, an integer, or a list of them and of atoms, 4,096 bytes together at most; `7`, `"7"` and `:"7"` are the same. It is stored nowhere: who does not have it cannot decrypt.
  Only a cipher of Kith's own has a place for it. Ecto does not tell a type which row it is in, so the types cannot do this. Call the functions where the key of the
  row is known; with a database that numbers rows, that is after the insert.

  With `allow_unbound: true`, `decrypt/2` takes fields without a context too, those of Cloak among them. It is for the time while a table is
  upgraded: as long as it is on, an old field can be put in the place of a bound one.

  ## Errors

  `encrypt` and `decrypt` return `{:error, %Kith.Error{}}`, their twins with `!` raise it. Damaged bytes never decrypt to other
  bytes, AES.CTR excepted.

    * `:corrupted_state` - the field does not decrypt: another key under this tag or id, another context or none, or damage
    * `:key_not_found` - no cipher has the tag or id of the field
    * `:malformed` - the bytes are no field: plaintext, for example
    * `:too_large` - more than 2^36 bytes
    * `:panic` - the library failed

  A wrong configuration and wrong arguments raise `ArgumentError`. Neither shows a key or a plaintext. Every error is an event,
  `[:kith, :vault, :error]`; see `Kith.Telemetry`.
  """

  alias Kith.{Error, Native, Telemetry}
  alias Kith.Vault.Config

  # Above, the work is too long for a normal scheduler. The slowest cipher takes about 10 µs for so much.
  @long 8_192

  @max_context 4_096

  @typedoc "The name of a cipher in the configuration."
  @type label :: atom | String.t()

  @typedoc "Where a field is, see \"Binding a field to its row\"."
  @type context :: String.t() | integer | [String.t() | integer | atom, ...]

  @typedoc "`:context`, and of `encrypt/2` `:label`, of `decrypt/2` `:allow_unbound`."
  @type options :: [label: label, context: context, allow_unbound: boolean]

  @callback encrypt(plaintext :: binary) :: {:ok, binary} | {:error, Error.t()}
  @callback encrypt(plaintext :: binary, label | options) :: {:ok, binary} | {:error, Error.t()}
  @callback encrypt!(plaintext :: binary) :: binary
  @callback encrypt!(plaintext :: binary, label | options) :: binary
  @callback decrypt(ciphertext :: binary) :: {:ok, binary} | {:error, Error.t()}
  @callback decrypt(ciphertext :: binary, options) :: {:ok, binary} | {:error, Error.t()}
  @callback decrypt!(ciphertext :: binary) :: binary
  @callback decrypt!(ciphertext :: binary, options) :: binary
  @callback json_library() :: module

  @doc false
  defmacro __using__(options) do
    otp_app = Keyword.fetch!(options, :otp_app)

    quote location: :keep do
      @behaviour Kith.Vault
      # Its init/1 is where vaults written for Cloak complete their configuration.
      @behaviour GenServer

      @doc "A child specification for a supervisor, see `Kith.Vault`."
      def child_spec(options), do: Kith.Vault.child_spec(__MODULE__, options)

      @doc "Opens the vault with the options of its configuration and these, and stays."
      def start_link(options \\ []), do: Kith.Vault.Server.start_link(__MODULE__, options)

      @doc "Completes the options of the configuration."
      @impl GenServer
      def init(options), do: {:ok, options}

      @doc "Encrypts a field under the current cipher."
      @impl Kith.Vault
      def encrypt(plaintext), do: Kith.Vault.encrypt(__MODULE__, plaintext, [])

      @doc "Encrypts a field under the cipher of a label, or with options, see `Kith.Vault`."
      @impl Kith.Vault
      def encrypt(plaintext, options), do: Kith.Vault.encrypt(__MODULE__, plaintext, options)

      @doc "Same as `encrypt/1`, returning the field or raising `Kith.Error`."
      @impl Kith.Vault
      def encrypt!(plaintext), do: Kith.Vault.value!(encrypt(plaintext))

      @doc "Same as `encrypt/2`, returning the field or raising `Kith.Error`."
      @impl Kith.Vault
      def encrypt!(plaintext, options), do: Kith.Vault.value!(encrypt(plaintext, options))

      @doc "Decrypts a field, under whichever cipher it is for."
      @impl Kith.Vault
      def decrypt(ciphertext), do: Kith.Vault.decrypt(__MODULE__, ciphertext, [])

      @doc "Decrypts a field that is bound to a context, see `Kith.Vault`."
      @impl Kith.Vault
      def decrypt(ciphertext, options), do: Kith.Vault.decrypt(__MODULE__, ciphertext, options)

      @doc "Same as `decrypt/1`, returning the plaintext or raising `Kith.Error`."
      @impl Kith.Vault
      def decrypt!(ciphertext), do: Kith.Vault.value!(decrypt(ciphertext))

      @doc "Same as `decrypt/2`, returning the plaintext or raising `Kith.Error`."
      @impl Kith.Vault
      def decrypt!(ciphertext, options), do: Kith.Vault.value!(decrypt(ciphertext, options))

      @doc "The module that makes JSON of maps and lists."
      @impl Kith.Vault
      def json_library, do: Kith.Vault.json_library(__MODULE__)

      @doc false
      def __kith_vault__(:otp_app), do: unquote(otp_app)

      defoverridable Module.definitions_in(__MODULE__, :def) -- [__kith_vault__: 1]
    end
  end

  @doc """
  Opens a vault, or opens it anew: reads its configuration, completes it with options, and takes the keys from their sources.

  Nobody has to call it; see "Starting" above. Fields that are being encrypted meanwhile use the keys of before. Raises `ArgumentError` for a wrong
  configuration; then the keys of before stay.
  """
  @spec open!(module, keyword) :: :ok
  def open!(vault, options \\ []) do
    config = Config.new!(vault, configured(vault, options))

    case Native.field_vault_open(config.current, config.ciphers) do
      {:ok, handle} ->
        :persistent_term.put(key(vault), %{
          handle: handle,
          current: config.current,
          labels: config.labels,
          json_library: config.json_library
        })

      {:error, {:invalid, message}} ->
        raise ArgumentError, "the configuration of #{inspect(vault)} is wrong: " <> message

      {:error, :panic} = result ->
        Telemetry.watch(result, nil, :field_vault_open)
        raise Error, :panic
    end
  end

  @doc """
  Says which cipher a field is for, from its first bytes. Nothing of it is authenticated.

      MyApp.Vault |> Kith.Vault.inspect_field(ciphertext)
      #=> {:ok, %{label: "2026", current: true, authenticated: true}}

  `:authenticated` is whether the cipher notices damage and another key. Errors: `:key_not_found`, `:malformed`.
  """
  @spec inspect_field(module, binary) ::
          {:ok, %{label: String.t(), current: boolean, authenticated: boolean}}
          | {:error, Error.t()}
  def inspect_field(vault, ciphertext) do
    binary!(ciphertext, "the ciphertext")
    state = state(vault)

    case native(:field_inspect, [state.handle, ciphertext]) do
      {:ok, {label, authenticated}} ->
        {:ok, %{label: label, current: label == state.current, authenticated: authenticated}}

      error ->
        explain(error)
    end
  end

  @doc """
  Rotates the keys of an instance of Kith, in a release or wherever its application may not be running.

      $ bin/my_app eval 'Kith.Vault.rotate(MyApp.Kith) |> IO.inspect()'

  As `Kith.rotate_keys/2`, with its options and errors, for the module that says `use Kith`. What does not run is started, and stopped again:
  the instance, and with `:repo` the repository, but nothing else of the application. It goes on beside nodes that run. `mix kith.rotate` is this for a shell.

  With `verify: true` it opens everything afterwards, as `Kith.verify_keys/2` does, and the result has `:verified`, with those counts.

  This is about what Kith itself keeps. For fields of the application's tables see `Kith.Vault.Migrator`.

  Errors: also `:storage` when the instance does not start; the detail says why.
  """
  @spec rotate(module, keyword) :: {:ok, map} | {:error, Error.t()}
  def rotate(instance, options \\ []) do
    if not (is_atom(instance) and Code.ensure_loaded?(instance) and
              function_exported?(instance, :__kith__, 1)),
       do: raise(ArgumentError, "expected a module that says `use Kith`")

    {verify, options} =
      if is_list(options), do: Keyword.pop(options, :verify, false), else: {false, options}

    case Kith.Standalone.run(instance, fn -> rotate_and_verify(instance, options, verify) end) do
      {:ok, result} -> result
      {:error, message} -> {:error, Error.new(:storage, message)}
    end
  end

  defp rotate_and_verify(instance, options, verify) do
    with {:ok, counts} <- Kith.rotate_keys(instance, options),
         {:ok, found} <- if(verify, do: Kith.verify_keys(instance), else: {:ok, nil}),
         do: {:ok, if(found, do: Map.put(counts, :verified, found), else: counts)}
  end

  @doc false
  def encrypt(vault, plaintext, options) do
    binary!(plaintext, "the plaintext")
    state = state(vault)
    {label, context} = writing!(options, state)
    long = byte_size(plaintext) > @long
    function = if long, do: :field_encrypt_long, else: :field_encrypt

    function
    |> native([state.handle, label, context, plaintext])
    |> explain()
    |> tell(vault, :encrypt)
  end

  @doc false
  def decrypt(vault, ciphertext, options),
    do: vault |> attempt(ciphertext, options) |> tell(vault, :decrypt)

  @doc false
  # Of somebody who does not know whether it decrypts, so that a failure is no event.
  def attempt(vault, ciphertext, options) do
    binary!(ciphertext, "the ciphertext")
    state = state(vault)
    {context, unbound} = reading!(options)
    long = byte_size(ciphertext) > @long
    function = if long, do: :field_decrypt_long, else: :field_decrypt

    function
    |> native([state.handle, context, unbound, ciphertext])
    |> explain()
  end

  @doc false
  def json_library(vault), do: state(vault).json_library || raise(ArgumentError, no_json(vault))

  @doc false
  def value!({:ok, value}), do: value
  def value!({:error, error}), do: raise(error)

  @doc false
  def child_spec(vault, options) do
    %{id: vault, start: {vault, :start_link, [Config.veil(options)]}, type: :worker}
  end

  @doc false
  # Whether any of its ciphers takes damage for plaintext.
  def unauthenticated?(vault), do: Enum.any?(state(vault).labels, fn {_, l} -> l.stream end)

  @doc false
  def current_label(vault), do: state(vault).current

  @doc false
  # Forgets the keys. The next call takes them anew.
  def close(vault), do: :persistent_term.erase(key(vault))

  defp key(vault), do: {__MODULE__, vault}

  defp state(vault) do
    case :persistent_term.get(key(vault), nil) do
      nil -> open_first(vault)
      state -> state
    end
  end

  # One process opens, as a term that is replaced costs every process of the VM.
  defp open_first(vault) do
    :global.trans({key(vault), self()}, fn -> opened(vault) || open!(vault) end, [node()])
    opened(vault)
  end

  defp opened(vault), do: :persistent_term.get(key(vault), nil)

  defp configured(vault, options) do
    if not (Code.ensure_loaded?(vault) and function_exported?(vault, :__kith_vault__, 1)),
      do: raise(ArgumentError, "expected a module that says `use Kith.Vault`")

    configuration = Application.get_env(vault.__kith_vault__(:otp_app), vault, [])
    options = Config.unveil(options)

    if not (Keyword.keyword?(configuration) and Keyword.keyword?(options)),
      do:
        raise(
          ArgumentError,
          "expected the configuration of #{inspect(vault)} to be a keyword list"
        )

    case vault.init(Keyword.merge(configuration, options)) do
      {:ok, config} ->
        config

      # What it returned may hold a key.
      _ ->
        raise ArgumentError, "expected #{inspect(vault)}.init/1 to return {:ok, options}"
    end
  end

  defp native(function, arguments) do
    Native
    |> apply(function, arguments)
    |> Telemetry.watch(nil, function)
  end

  defp explain({:error, :corrupted_state}) do
    {:error,
     Error.new(
       :corrupted_state,
       "the field is damaged, or under another key than the one of its tag or id, or bound to another context"
     )}
  end

  defp explain({:error, :key_not_found}),
    do: {:error, Error.new(:key_not_found, "no cipher has the tag or id of the field")}

  defp explain({:error, :malformed}),
    do: {:error, Error.new(:malformed, "expected a field of Kith.Vault or of Cloak")}

  defp explain(result), do: Error.from_native(result)

  defp tell({:ok, _} = result, _vault, _operation), do: result

  defp tell({:error, error} = result, vault, operation) do
    Telemetry.vault_error(vault, operation, error.reason)
    result
  end

  # What was given instead may well be a plaintext, so it is not printed.
  defp binary!(value, _what) when is_binary(value), do: :ok
  defp binary!(_value, what), do: raise(ArgumentError, "expected #{what} to be a binary")

  defp writing!([], _state), do: {nil, nil}

  defp writing!(label, state) when (is_atom(label) and label != nil) or is_binary(label),
    do: {label!(label, nil, state), nil}

  defp writing!(options, state) do
    options = options!(options, label: nil, context: nil)
    context = context!(options[:context])
    {label!(options[:label], context, state), context}
  end

  defp label!(label, context, state) do
    name = if label == nil, do: state.current, else: name!(label)

    case state.labels do
      %{^name => %{writes: false}} ->
        raise ArgumentError,
              "expected a cipher that encrypts, got #{inspect(label)}, which only reads"

      %{^name => %{binds: false}} when context != nil ->
        raise ArgumentError,
              "expected a cipher of Kith.Vault for a field with a context, got #{inspect(name)}, which has no place for one"

      %{^name => _} ->
        if label == nil, do: nil, else: name

      _ ->
        known = state.labels |> Map.keys() |> Enum.sort() |> Enum.join(", ")
        raise ArgumentError, "expected the label of a cipher, one of: #{known}"
    end
  end

  defp name!(label) when is_atom(label) or is_binary(label), do: to_string(label)

  defp name!(_),
    do: raise(ArgumentError, "expected the label of a cipher to be an atom or a string")

  defp reading!([]), do: {nil, false}

  defp reading!(options) do
    options = options!(options, context: nil, allow_unbound: false)
    {context, unbound} = {context!(options[:context]), options[:allow_unbound]}

    cond do
      not is_boolean(unbound) -> raise ArgumentError, "expected :allow_unbound to be a boolean"
      unbound and context == nil -> raise ArgumentError, "expected :context with :allow_unbound"
      true -> {context, unbound}
    end
  end

  # As Keyword.validate!/2, which prints all that it was given.
  defp options!(options, known) do
    case Keyword.keyword?(options) and Keyword.validate(options, known) do
      {:ok, options} ->
        options

      {:error, unknown} ->
        raise ArgumentError,
              "unknown options #{inspect(unknown)}, known ones are #{inspect(Keyword.keys(known))}"

      false ->
        raise ArgumentError, "expected a label or a keyword list of options"
    end
  end

  @doc false
  # A context as the native library takes it.
  def context!(nil), do: nil

  def context!([_ | _] = names) do
    names = Enum.map(names, &name_of_place!/1)

    # On a normal scheduler there is no time for more.
    if IO.iodata_length(names) > @max_context,
      do: raise(ArgumentError, "expected :context to have at most #{@max_context} bytes")

    names
  end

  def context!(name) when is_binary(name) or is_integer(name), do: context!([name])

  def context!(_) do
    raise ArgumentError,
          "expected :context to be a string, an integer, or a list of them that is not empty"
  end

  defp name_of_place!(name) when is_binary(name), do: name
  defp name_of_place!(name) when is_integer(name), do: Integer.to_string(name)

  defp name_of_place!(name) when is_atom(name) and name not in [nil, true, false],
    do: Atom.to_string(name)

  # Most likely the key of a row that was not inserted yet.
  defp name_of_place!(_) do
    raise ArgumentError,
          "expected each part of :context to be a string, an integer or an atom other than nil, true and false"
  end

  defp no_json(vault) do
    "expected :json_library of #{inspect(vault)} to be given, as neither Jason nor JSON is here"
  end
end
