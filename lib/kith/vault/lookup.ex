defmodule Kith.Vault.Lookup do
  @moduledoc false
  # Hashes of values, by which a table is searched. What Kith.Ecto.HMAC, SHA256 and PBKDF2 do, without Ecto.

  alias Kith.{Error, Native, Telemetry, Validation}
  alias Kith.Password.Limiter
  alias Kith.Vault.Config

  @native [:sha224, :sha256, :sha384, :sha512]
  # The older ones are for what was written with Cloak, and computed by Erlang.
  @old [:md5, :ripemd160, :sha]

  # From so many iterations on they wait for their turn, as passwords do.
  @many 10_000

  @hmac [algorithm: {:one_of, @old ++ @native}, secret: :any]
  @pbkdf2 [
    algorithm: {:one_of, @native},
    iterations: {:integer, 1..10_000_000},
    secret: :any,
    size: {:integer, 1..1_024},
    mode: {:one_of, [:correct, :cloak_1_3]}
  ]

  @doc "HMAC of a value, as Cloak.Ecto.HMAC."
  @spec hmac(module, keyword, binary) :: binary
  def hmac(owner, config, value) do
    {algorithm, key} =
      prepared(owner, config, fn ->
        config = checked!(owner, config, @hmac)

        if config[:algorithm] in @old,
          do: {config[:algorithm], secret!(owner, config)},
          else: {config[:algorithm], open!(owner, config)}
      end)

    if algorithm in @old,
      do: :crypto.mac(:hmac, algorithm, key.(), value),
      else: native!(:lookup_hmac, [key, algorithm, value])
  end

  @doc "SHA-256 of a value, as Cloak.Ecto.SHA256."
  @spec sha256(binary) :: binary
  def sha256(value), do: :crypto.hash(:sha256, value)

  @doc """
  PBKDF2 of a value. In the mode `:cloak_1_3` the bytes of Cloak.Ecto up to 1.3, which takes the size for the number of iterations.
  """
  @spec pbkdf2(module, keyword, binary) :: binary
  def pbkdf2(owner, config, value) do
    {algorithm, iterations, size, key} =
      prepared(owner, config, fn ->
        config = checked!(owner, config, @pbkdf2)
        {algorithm, key} = {config[:algorithm], open!(owner, config)}

        case config[:mode] do
          :correct -> {algorithm, config[:iterations], config[:size], key}
          :cloak_1_3 -> {algorithm, config[:size], nil, key}
        end
      end)

    arguments = [key, algorithm, value, iterations, size]

    if iterations < @many,
      do: native!(:lookup_pbkdf2, arguments),
      else: in_turn!(arguments)
  end

  defp in_turn!(arguments) do
    case Limiter.run(fn -> apply(Native, :lookup_pbkdf2, arguments) end) do
      {{:done, result}, _waited} -> answer!(:lookup_pbkdf2, result)
      {:busy, _waited} -> raise Error, :busy
    end
  end

  defp native!(function, arguments), do: answer!(function, apply(Native, function, arguments))

  defp answer!(function, result) do
    case Telemetry.watch(result, nil, function) do
      {:ok, hash} -> hash
      error -> raise elem(Error.from_native(error), 1)
    end
  end

  # The secret is taken from its source when the configuration is first seen, and anew when it changed. What is kept to
  # see that is a digest.
  defp prepared(owner, config, prepare) do
    digest = :crypto.hash(:sha256, :erlang.term_to_binary(config))

    case :persistent_term.get({__MODULE__, owner}, nil) do
      {^digest, prepared} ->
        prepared

      _ ->
        prepared = prepare.()
        :persistent_term.put({__MODULE__, owner}, {digest, prepared})
        prepared
    end
  end

  defp checked!(owner, config, schema) do
    with :ok <- Validation.validate(config, schema),
         nil <- Enum.find([:algorithm, :secret], &(config[&1] == nil)) do
      config
    else
      {:error, message} -> wrong!(owner, message)
      name -> wrong!(owner, "expected #{inspect(name)} to be given")
    end
  end

  defp open!(owner, config) do
    with {:ok, source} <- Config.source(config[:secret], ":secret", nil),
         {:ok, key} <- Native.lookup_open(source) do
      key
    else
      {:error, {:invalid, message}} -> wrong!(owner, message)
      {:error, message} when is_binary(message) -> wrong!(owner, message)
      error -> answer!(:lookup_open, error)
    end
  end

  defp secret!(owner, config) do
    case Config.source(config[:secret], ":secret", nil) do
      {:ok, {:key, bytes}} ->
        fn -> bytes end

      {:ok, _} ->
        wrong!(
          owner,
          "expected :secret to be bytes with the algorithm #{inspect(config[:algorithm])}"
        )

      {:error, message} ->
        wrong!(owner, message)
    end
  end

  @spec wrong!(module, String.t()) :: no_return
  defp wrong!(owner, message),
    do: raise(ArgumentError, "the configuration of #{inspect(owner)} is wrong: " <> message)
end
