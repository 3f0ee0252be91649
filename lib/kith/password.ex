defmodule Kith.Password do
  @moduledoc """
  Passwords of the application's own accounts, hashed with Argon2id (RFC 9106).

      {:ok, hash} = Kith.Password.hash("correct horse battery staple")
      true = Kith.Password.verify("correct horse battery staple", hash)

  The hash is a PHC string, `"$argon2id$v=19$m=65536,t=3,p=4$..."`, to be stored in a column of the application. Hashes of
  other libraries in this form verify here, `argon2_elixir`'s among them, and hashes made here verify there. No instance
  of Kith is needed.

  A login looks like this. Whether there is such a user is not seen from how long it takes:

      def login(name, password) do
        user = Repo.get_by(User, name: name)
        right? = if user, do: Kith.Password.verify(password, user.password_hash), else: Kith.Password.dummy_verify()
        if right?, do: {:ok, rehash(user, password)}, else: :error
      end

      defp rehash(user, password) do
        if Kith.Password.needs_rehash?(user.password_hash),
          do: Repo.update!(User.password_changeset(user, Kith.Password.hash!(password))),
          else: user
      end

  ## Passwords

  A password is a binary of 1 to 1,024 bytes; it need not be UTF-8. No password is cut: a longer one has no hash. Two ways of writing
  the same letters in Unicode are two passwords, so normalize before you hash, or do not.

  ## What it costs

    * `:memory` - KiB of memory, 8,192 to 262,144. Default 65,536 (64 MiB).
    * `:passes` - passes over the memory, 1 to 128; memory times passes is at most 1,048,576. Default 3.
    * `:parallelism` - lanes, 1 to 64. They are computed one after the other. Default 4.

  The defaults are the second recommended option of RFC 9106, section 4, and `argon2_elixir`'s. They take about 0.15 seconds on the machine of
  `docs/decisions/0012-argon2id.md`, which says why not more or less. Give other ones to each call, or for all:

      config :kith, Kith.Password, memory: 32_768

  `calibrate/1` measures what the machine can do in the time a login may take. An application's tests are quicker with `memory: 8_192, passes: 1`. Change the defaults by configuration rather than by
  arguments, so that `dummy_verify/1` takes as long as the others do. A user whose hash was made with other parameters takes
  another time until `needs_rehash?/2` has led to a new one.

  ## Many at once

  At most half of the dirty CPU schedulers of the VM, and at least one, work on passwords; the others stay with the encryption of
  messages. The rest waits its turn: 32 for each of these schedulers, up to five seconds each. What there is no room or time for is
  `:busy`. That is neither a right nor a wrong password: do not count it as a failed attempt, and answer as for an overload
  (HTTP 503). A caller that dies leaves the queue; work that was begun is finished and keeps its place so long.

  An attacker can fill the queue and keep others from logging in. Kith does not know who asks: limit attempts by address and by account.

  ## Errors

  `hash/2` returns `{:error, %Kith.Error{}}` and `hash!/2` raises it. `verify/2` and `dummy_verify/1` return `true` and `false` only,
  because everything else would be true in an `if`; what is neither is raised. The reasons:

    * `:malformed` - of `hash/2`, the password is empty; of `verify/2`, the hash is no Argon2id hash of version 19. Other hashes
      (Argon2i, bcrypt) are told apart by how they begin.
    * `:too_large` - of `hash/2`, the password is too long; of `verify/2`, the hash asks for more than the limits above. What
      somebody wrote into the database does not decide how much a login costs.
    * `:busy` - see above, or the machine has no memory for it.
    * `:panic` - the library failed.

  ## What is seen of a password

  It is an Elixir term in the process that has it, and in the one that hashes it, which ends with it and is left out of tracing and
  crash dumps. It is in no log, exception, telemetry event or state of Kith. `Kith.Telemetry` has the events: how long, how long
  waited, and whether it matched, of nobody in particular.
  """

  alias Kith.{Error, Native, NifNotLoadedError, Telemetry, Validation}
  alias Kith.Password.Limiter

  @defaults [memory: 65_536, passes: 3, parallelism: 4]

  # Kith.Native takes the same at most, and less at least, so that hashes of before verify.
  @schema [
    memory: {:integer, 8_192..262_144},
    passes: {:integer, 1..128},
    parallelism: {:integer, 1..64}
  ]
  @max_work 1_048_576

  # KiB. The least that OWASP's cheat sheet on passwords has, with two passes.
  @least 19_456

  @typedoc "What a hash costs."
  @type option :: {:memory, pos_integer} | {:passes, pos_integer} | {:parallelism, pos_integer}

  @doc """
  Hashes a password, with a salt of its own.

  Options that are not given are those of the configuration, or the defaults.
  """
  @spec hash(binary, [option]) :: {:ok, String.t()} | {:error, Error.t()}
  def hash(password, options \\ []) do
    binary!(password, "the password")
    parameters = parameters!(options)

    Telemetry.span([:kith, :password, :hash], %{}, fn ->
      {result, waited} = limited(:password_hash, [password, parameters])
      result = explain(result, "the password is empty", "the password has more than 1,024 bytes")
      {result, %{waited: waited}, Telemetry.outcome(result)}
    end)
  end

  @doc "Same as `hash/2`, returning the hash or raising `Kith.Error`."
  @spec hash!(binary, [option]) :: String.t()
  def hash!(password, options \\ []) do
    case hash(password, options) do
      {:ok, hash} -> hash
      {:error, error} -> raise error
    end
  end

  @doc """
  Whether the hash is one of the password.

  Takes as long for a wrong password as for the right one, and for one that is empty or too long to have a hash. Raises `Kith.Error` when
  there is no answer; see "Errors" above.
  """
  @spec verify(binary, String.t()) :: boolean
  def verify(password, hash) do
    binary!(password, "the password")
    binary!(hash, "the hash")

    verified =
      Telemetry.span([:kith, :password, :verify], %{}, fn ->
        {result, waited} = verify_in_turn(password, hash)

        result =
          explain(
            result,
            "expected a hash of Argon2id, version 19, as a PHC string",
            "the hash asks for more memory or work than is allowed"
          )

        metadata = Map.put(Telemetry.outcome(result), :matched, result == {:ok, true})
        {result, %{waited: waited}, metadata}
      end)

    case verified do
      {:ok, matched?} -> matched?
      {:error, error} -> raise error
    end
  end

  @doc """
  Does the work of `verify/2` for nobody, and returns `false`.

  For a name that no user has: an answer that came sooner would say so.
  """
  @spec dummy_verify([option]) :: false
  def dummy_verify(options \\ []) do
    {memory, passes, parallelism} = parameters!(options)
    salt = String.duplicate("A", 22)
    tag = String.duplicate("A", 43)
    # No password is known that has these bytes for a tag.
    verify("nobody's", "$argon2id$v=19$m=#{memory},t=#{passes},p=#{parallelism}$#{salt}$#{tag}") and
      false
  end

  @doc """
  Whether a hash is not as `hash/2` would make it with these options, in cost, algorithm or size.

  Ask after the password has been verified, when it is there to be hashed anew. The hash of another library or algorithm is one to be replaced.

      iex> {:ok, hash} = Kith.Password.hash("correct horse", memory: 8_192, passes: 1)
      iex> Kith.Password.needs_rehash?(hash, memory: 8_192, passes: 1)
      false
      iex> Kith.Password.needs_rehash?(hash)
      true
  """
  @spec needs_rehash?(String.t(), [option]) :: boolean
  def needs_rehash?(hash, options \\ []) do
    binary!(hash, "the hash")
    parameters = parameters!(options)
    inspected(hash) != {:ok, {parameters, true}}
  end

  @doc """
  Measures what this machine can do, and returns costs whose hash takes about so long, with the milliseconds it took.

      iex> {costs, _milliseconds} = Kith.Password.calibrate(milliseconds: 10, memory: 19_456)
      iex> {costs[:memory], costs[:passes] >= 2}
      {19_456, true}

  Call it on the machine that will hash, while that is not busy, and put the costs into the configuration:

      $ bin/my_app eval 'Kith.Password.calibrate(milliseconds: 300) |> IO.inspect()'
      {[memory: 65536, passes: 6, parallelism: 4], 289}

    * `:milliseconds` - how long, 10 to 10,000. Default 250. A login takes so much longer, and so does each guess of somebody who has stolen the
      database.
    * `:memory` - KiB, 19,456 to 262,144, that a hash may take. Default 65,536. As many hashes at once as "Many at once" says have it all.

  Memory before passes: it is halved only where two passes over it would take longer. It is never less than 19,456 KiB with two passes, which is the least that
  OWASP recommends, and where that takes longer than was asked, it does. A few hashes are made meanwhile, in turn with the others; raises `Kith.Error` with `:busy` where
  there is no room for them.
  """
  @spec calibrate(milliseconds: 10..10_000, memory: pos_integer) ::
          {[option], milliseconds :: non_neg_integer}
  def calibrate(options \\ []) do
    schema = [milliseconds: {:integer, 10..10_000}, memory: {:integer, @least..262_144}]
    options = Validation.validate!(options, schema)
    {_, _, parallelism} = parameters!(memory: 8_192, passes: 1)
    # In `bin/my_app eval` nothing is.
    {:ok, _} = Application.ensure_all_started(:kith)
    calibrate(options[:memory] || 65_536, options[:milliseconds] || 250, parallelism)
  end

  defp calibrate(memory, milliseconds, parallelism) do
    both = took({memory, 2, parallelism})

    if both > milliseconds * 1_000 and memory > @least do
      calibrate(max(div(memory, 2), @least), milliseconds, parallelism)
    else
      passes = div(2 * milliseconds * 1_000, max(both, 1))
      passes = passes |> max(2) |> min(128) |> min(div(@max_work, memory))
      took = took({memory, passes, parallelism})
      {[memory: memory, passes: passes, parallelism: parallelism], div(took, 1_000)}
    end
  end

  # Microseconds of the quickest of three: what else runs makes it slower, and nothing makes it quicker.
  defp took(costs) do
    Enum.min(
      for _ <- 1..3 do
        began = System.monotonic_time()
        {result, waited} = limited(:password_hash, ["a password", costs])

        case explain(result, nil, nil) do
          {:ok, _hash} ->
            took = System.monotonic_time() - began - waited
            System.convert_time_unit(took, :native, :microsecond)

          {:error, error} ->
            raise error
        end
      end
    )
  end

  @doc false
  # What a password costs to try, by the options of hash/2.
  def costs!(options), do: parameters!(Keyword.take(options, Keyword.keys(@schema)))

  @doc false
  # The options of hash/2, and others.
  def cost_options, do: Keyword.keys(@schema)

  @doc false
  # Runs a native function that works on a password, when it is its turn: {:ok, value} or {:error, error}.
  def in_turn(function, arguments) do
    {result, _waited} = limited(function, arguments)
    explain(result, "the password is empty", "the password has more than 1,024 bytes")
  end

  # A hash that is none waits for nothing.
  defp verify_in_turn(password, hash) do
    case inspected(hash) do
      {:ok, _} -> limited(:password_verify, [password, hash])
      error -> {error, 0}
    end
  end

  defp inspected(hash),
    do: hash |> Native.password_inspect() |> Telemetry.watch(nil, :password_inspect)

  defp limited(function, arguments) do
    case Limiter.run(fn -> native(function, arguments) end) do
      {{:done, {:not_loaded, error}}, _waited} -> raise error
      {{:done, result}, waited} -> {Telemetry.watch(result, nil, function), waited}
      {:busy, waited} -> {{:error, :busy}, waited}
    end
  end

  # Runs in a process of its own, whose end would be logged with the arguments.
  defp native(function, arguments) do
    apply(Native, function, arguments)
  rescue
    error in NifNotLoadedError -> {:not_loaded, error}
    _ -> {:error, :panic}
  end

  defp explain({:error, :malformed}, malformed, _), do: {:error, Error.new(:malformed, malformed)}
  defp explain({:error, :too_large}, _, too_large), do: {:error, Error.new(:too_large, too_large)}
  defp explain(result, _, _), do: Error.from_native(result)

  # What was given instead may well be, or hold, a password.
  defp binary!(value, _what) when is_binary(value), do: :ok
  defp binary!(_value, what), do: raise(ArgumentError, "expected #{what} to be a string")

  defp parameters!(options) do
    configured = Validation.validate!(Application.get_env(:kith, __MODULE__, []), @schema)
    given = Validation.validate!(options, @schema)
    options = @defaults |> Keyword.merge(configured) |> Keyword.merge(given)
    [memory, passes, parallelism] = for {key, _} <- @defaults, do: options[key]

    if memory * passes > @max_work do
      raise ArgumentError,
            "expected :memory times :passes to be at most #{@max_work}, got: #{memory} times #{passes}"
    end

    {memory, passes, parallelism}
  end
end
