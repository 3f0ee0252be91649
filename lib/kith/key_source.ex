defmodule Kith.KeySource do
  @moduledoc false
  # The sources of key-encryption keys in `:keys`: what is accepted, what the native library gets, and what is said at the
  # start. No message prints a value, which may be a key in the wrong place.

  require Logger

  alias Kith.{Native, Validation}

  @type t ::
          {:env, String.t()}
          | {:file, Path.t()}
          | {:key, <<_::256>>}
          | {:passphrase, {:env, String.t()} | {:file, Path.t()}, parameters :: String.t()}
          | {:kms, keyword}
          | :development

  @kms [
    url: nil,
    ca_file: nil,
    certificate: nil,
    private_key: nil,
    cleartext: false,
    connect_timeout: 1_000,
    timeout: 2_000,
    retries: 2,
    pause: 1_000,
    aad: false,
    fallback: nil
  ]

  @doc "Whether a source has the right form. `id` is that of the key, `place` where it stands."
  @spec check(String.t(), String.t(), term) :: :ok | {:error, String.t()}
  def check(_place, _id, {kind, name})
      when kind in [:env, :file] and is_binary(name) and name != "",
      do: :ok

  def check(_place, _id, {:key, <<_::256>>}), do: :ok
  def check(_place, _id, {:key, fun}) when is_function(fun, 0), do: :ok
  def check(_place, _id, :development), do: :ok

  def check(_place, _id, {:passphrase, {kind, name}, parameters})
      when kind in [:env, :file] and is_binary(name) and name != "" and is_binary(parameters),
      do: :ok

  def check(place, id, {:passphrase, _, _}), do: passphrase(place, id)
  def check(place, id, {:passphrase, _}), do: passphrase(place, id)

  def check(place, id, {:kms, options}) do
    with :ok <- Validation.validate(options, kms_schema()),
         :ok <- url_given(options),
         :ok <- certificate_with_key(options) do
      :ok
    else
      {:error, message} ->
        {:error, "the key service of #{inspect(id)} (#{place} in :keys): #{message}"}
    end
  end

  def check(place, id, {:key, _}),
    do: {:error, "expected the key #{inspect(id)} (#{place} in :keys) to be 32 bytes"}

  def check(place, id, _) do
    {:error,
     "expected the source of #{inspect(id)} (#{place} in :keys) to be {:env, name}, {:file, path}, " <>
       "{:passphrase, {:env | :file, name}, parameters}, {:kms, options}, :development or {:key, 32 bytes}"}
  end

  defp passphrase(place, id) do
    {:error,
     "expected the passphrase of #{inspect(id)} (#{place} in :keys) to be {:passphrase, {:env, name} or " <>
       "{:file, path}, parameters}, with the parameters that mix kith.gen.passphrase prints"}
  end

  defp kms_schema do
    [
      url: {:custom, &text(:url, &1)},
      ca_file: {:custom, &text(:ca_file, &1)},
      certificate: {:custom, &text(:certificate, &1)},
      private_key: {:custom, &text(:private_key, &1)},
      cleartext: {:one_of, [true, false]},
      connect_timeout: {:integer, 1..60_000},
      timeout: {:integer, 1..60_000},
      retries: {:integer, 0..10},
      pause: {:integer, 0..60_000},
      aad: {:one_of, [true, false]},
      fallback: {:custom, &text(:fallback, &1)}
    ]
  end

  defp text(key, value) do
    if is_binary(value) and value != "" and String.valid?(value),
      do: :ok,
      else: {:error, "expected #{inspect(key)} to be a string that is not empty"}
  end

  defp url_given(options) do
    if Keyword.has_key?(options, :url),
      do: :ok,
      else: {:error, "expected :url to be given, for example \"unix:///run/kms.sock\""}
  end

  defp certificate_with_key(options) do
    if Keyword.has_key?(options, :certificate) == Keyword.has_key?(options, :private_key),
      do: :ok,
      else: {:error, "expected :certificate and :private_key together"}
  end

  @doc "The source as the native library takes it."
  def native({:key, fun}) when is_function(fun, 0), do: {:key, fun.()}

  def native({:passphrase, secret, parameters}), do: {:passphrase, {secret, parameters}}

  def native({:kms, options}) do
    options = Map.new(Keyword.merge(@kms, options))
    client = if options.certificate, do: {options.certificate, options.private_key}

    options =
      options
      |> Map.drop([:certificate, :private_key])
      |> Map.put(:client, client)
      |> Map.put(:extended, options.aad)

    {:kms, options}
  end

  def native(source), do: source

  @doc "Which part key services have among the keys: none, the current key, or only retired ones."
  @spec kms(keyword) :: nil | :current | :retired
  def kms(keys) do
    {_, current} = keys[:current]
    retired = for {_, source} <- keys[:retired] || [], do: source

    cond do
      match?({:kms, _}, current) -> :current
      Enum.any?(retired, &match?({:kms, _}, &1)) -> :retired
      true -> nil
    end
  end

  @doc "Refuses a key for development where an application runs as a release, or was compiled for production."
  def check_environment!(keys) do
    if development?(keys) and production?() do
      raise ArgumentError,
            "a key that is :development in :keys lives as long as the VM, and all that it wrapped is lost with it: " <>
              "it is refused in a release and in MIX_ENV=prod. Use {:file, path}, a passphrase or a key service"
    end
  end

  defp development?(keys),
    do: Enum.any?([keys[:current] | keys[:retired] || []], &match?({_, :development}, &1))

  defp production? do
    System.get_env("RELEASE_NAME") != nil or
      (function_exported?(Mix, :env, 0) and apply(Mix, :env, []) == :prod)
  end

  @doc "Says at the start what an operator must know about the keys."
  def announce(name, keys, vault) do
    if development?(keys) do
      Logger.warning(
        "Kith #{inspect(name)} uses a key-encryption key FOR DEVELOPMENT. It is in the memory of this VM only: when the VM " <>
          "ends, nothing that was stored opens any more"
      )
    end

    with {:ok, {_open, true}} <- Native.vault_memory(vault), do: unlocked()
    :ok
  end

  @doc "Says once for each VM that keys may be written to swap."
  def unlocked do
    if :persistent_term.get({__MODULE__, :unlocked}, false) == false do
      :persistent_term.put({__MODULE__, :unlocked}, true)

      Logger.warning(
        "Kith could not lock the memory of its keys, which may be written to swap: raise the limit of locked memory " <>
          "(ulimit -l, LimitMEMLOCK=), 4 KB for each key that is kept open, or encrypt the swap"
      )
    end
  end
end
