defmodule Kith.Vault.Config do
  @moduledoc false
  # The options of a vault: Kith's own and those of Cloak. No message prints a value, as a key may stand in any place by mistake.

  alias Kith.Validation

  @enforce_keys [:current, :ciphers, :labels, :json_library]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          current: String.t(),
          ciphers: [{String.t(), tuple, {atom, binary}}],
          labels: %{String.t() => %{writes: boolean, binds: boolean, stream: boolean}},
          json_library: nil | module
        }

  @gcm :"Elixir.Cloak.Ciphers.AES.GCM"
  @ctr :"Elixir.Cloak.Ciphers.AES.CTR"
  @old_gcm :"Elixir.Cloak.Ciphers.Deprecated.AES.GCM"
  @old_ctr :"Elixir.Cloak.Ciphers.Deprecated.AES.CTR"

  # The options of each kind of cipher, those that may be left out with their default.
  @known %{
    Kith.Vault => [:id, :key],
    @gcm => [:tag, :key, iv_length: 16],
    @ctr => [:tag, :key, unsafe_write: false],
    @old_gcm => [:module_tag, :tag, :key],
    @old_ctr => [:module_tag, :tag, :key]
  }

  @doc "Takes the options of a vault apart, or raises `ArgumentError`."
  @spec new!(module, keyword) :: t
  def new!(vault, options) do
    case new(options) do
      {:ok, config} ->
        config

      {:error, message} ->
        raise ArgumentError, "the configuration of #{inspect(vault)} is wrong: " <> message
    end
  end

  @spec new(keyword) :: {:ok, t} | {:error, String.t()}
  def new(options) do
    with :ok <- Validation.validate(options, schema()),
         {:ok, given} <- ciphers(options[:ciphers]),
         {:ok, current} <- current(options[:current], given),
         {:ok, ciphers} <- all(given) do
      {:ok,
       %__MODULE__{
         current: current,
         ciphers: Enum.map(ciphers, &Tuple.delete_at(&1, 3)),
         labels: Map.new(ciphers, fn {label, _, _, abilities} -> {label, abilities} end),
         json_library: json_library(options[:json_library])
       }}
    end
  end

  @doc "A supervisor prints the arguments of a child that fails; a function prints as a function."
  def veil(options) do
    if Keyword.keyword?(options) and options[:ciphers] != nil,
      do: Keyword.update!(options, :ciphers, fn ciphers -> fn -> ciphers end end),
      else: options
  end

  def unveil(options) do
    case Keyword.keyword?(options) and options[:ciphers] do
      ciphers when is_function(ciphers, 0) -> Keyword.put(options, :ciphers, ciphers.())
      _ -> options
    end
  end

  @doc """
  A key or secret as the native library takes it, or what was expected.

  `size` is how many bytes it has where it is given directly, or nil for any number.
  """
  @spec source(term, String.t(), nil | pos_integer) ::
          {:ok, {:env | :file | :key, binary}} | {:error, String.t()}
  def source(source, what, size) do
    case source do
      {kind, name} when kind in [:env, :file] and is_binary(name) and name != "" ->
        {:ok, source}

      {:key, bytes} when is_binary(bytes) ->
        bytes(bytes, what, size)

      {:key, fun} when is_function(fun, 0) ->
        bytes(fun.(), what, size)

      bytes when is_binary(bytes) ->
        bytes(bytes, what, size)

      _ ->
        {:error,
         "expected #{what} to be {:env, name}, {:file, path} or #{size || "its"} bytes, got something else"}
    end
  end

  defp bytes(bytes, _what, size) when is_binary(bytes) and byte_size(bytes) == size,
    do: {:ok, {:key, bytes}}

  defp bytes(<<_, _::binary>> = bytes, _what, nil), do: {:ok, {:key, bytes}}

  defp bytes(bytes, what, nil) when is_binary(bytes),
    do: {:error, "expected #{what} to have bytes, got none"}

  defp bytes(bytes, what, size) when is_binary(bytes) do
    hint =
      if match?({:ok, <<_::256>>}, Base.decode64(bytes)), do: ", which are Base64 of 32", else: ""

    {:error, "expected #{what} to have #{size} bytes, got #{byte_size(bytes)}#{hint}"}
  end

  defp bytes(_, what, _size), do: {:error, "expected #{what} to be bytes, got something else"}

  defp schema do
    [
      ciphers: :any,
      current: {:custom, &label/1},
      json_library: {:module, [encode!: 1, decode!: 1]}
    ]
  end

  defp label(label) when (is_atom(label) and label != nil) or is_binary(label), do: :ok
  defp label(_), do: {:error, "expected :current to be the label of a cipher"}

  defp json_library(nil), do: Enum.find([Jason, JSON], &Code.ensure_loaded?/1)
  defp json_library(module), do: module

  defp ciphers(nil), do: {:error, "expected :ciphers to be given, label: {module, options}"}

  defp ciphers([_ | _] = ciphers) do
    if Enum.all?(ciphers, &cipher?/1),
      do: {:ok, Enum.map(ciphers, fn {label, cipher} -> {to_string(label), cipher} end)},
      else: {:error, "expected each of :ciphers to be label: {module, options}"}
  end

  defp ciphers(_),
    do: {:error, "expected :ciphers to be a list of label: {module, options} that is not empty"}

  defp cipher?({label, {module, options}}) when is_atom(module),
    do: ((is_atom(label) and label != nil) or is_binary(label)) and Keyword.keyword?(options)

  defp cipher?(_), do: false

  # Kith never takes the order of a list for a decision; Cloak does.
  defp current(nil, [{label, _}]), do: {:ok, label}

  defp current(nil, [{label, _} | _] = ciphers) do
    if Enum.all?(ciphers, fn {_, {module, _}} -> module != Kith.Vault end),
      do: {:ok, label},
      else:
        {:error,
         "expected :current to be given, the label of the cipher that encrypts, as not all of them are Cloak's"}
  end

  defp current(label, ciphers) do
    label = to_string(label)

    if List.keymember?(ciphers, label, 0),
      do: {:ok, label},
      else: {:error, "expected :current to be the label of one of :ciphers"}
  end

  defp all(ciphers) do
    Enum.reduce_while(ciphers, {:ok, []}, fn {label, {module, options}}, {:ok, done} ->
      case one(label, module, options) do
        {:ok, cipher} -> {:cont, {:ok, done ++ [cipher]}}
        {:error, message} -> {:halt, {:error, "cipher #{inspect(label)}: " <> message}}
      end
    end)
  end

  defp one(label, module, options) do
    with {:ok, known} <- known(module),
         {:ok, options} <- given(options, known),
         {:ok, source} <- source(options[:key], ":key", 32),
         {:ok, format, abilities} <- format(module, options) do
      {:ok, {label, format, source, abilities}}
    end
  end

  defp known(module) do
    with :error <- Map.fetch(@known, module) do
      names = @known |> Map.keys() |> Enum.sort() |> Enum.map_join(", ", &inspect/1)
      {:error, "expected its module to be one of #{names}, got: #{inspect(module)}"}
    end
  end

  defp given(options, known) do
    names = Enum.map(known, fn name -> if is_tuple(name), do: elem(name, 0), else: name end)
    required = Enum.filter(known, &is_atom/1)

    cond do
      unknown = Enum.find(Keyword.keys(options), &(&1 not in names)) ->
        list = Enum.map_join(names, ", ", &inspect/1)
        {:error, "unknown option #{inspect(unknown)}, known ones are #{list}"}

      missing = Enum.find(required, &(options[&1] == nil)) ->
        {:error, "expected #{inspect(missing)} to be given"}

      true ->
        {:ok, Keyword.merge(Enum.filter(known, &is_tuple/1), options)}
    end
  end

  defp format(Kith.Vault, options) do
    with {:ok, id} <- text(options, :id),
         do: {:ok, {:kith, id, "", 0}, %{writes: true, binds: true, stream: false}}
  end

  defp format(@gcm, options) do
    with {:ok, tag} <- text(options, :tag),
         {:ok, length} <- iv_length(options[:iv_length]),
         do: {:ok, {:cloak_gcm, tag, "", length}, %{writes: true, binds: false, stream: false}}
  end

  defp format(@ctr, options) do
    with {:ok, tag} <- text(options, :tag),
         {:ok, writes} <- unsafe_write(options[:unsafe_write]) do
      number = if writes, do: 1, else: 0
      {:ok, {:cloak_ctr, tag, "", number}, %{writes: writes, binds: false, stream: true}}
    end
  end

  defp format(module, options) do
    {format, stream} =
      if module == @old_gcm, do: {:cloak_gcm_0_6, false}, else: {:cloak_ctr_0_6, true}

    with {:ok, tag} <- text(options, :tag),
         {:ok, module_tag} <- text(options, :module_tag),
         do: {:ok, {format, tag, module_tag, 0}, %{writes: false, binds: false, stream: stream}}
  end

  defp text(options, name) do
    case options[name] do
      text when is_binary(text) -> {:ok, text}
      _ -> {:error, "expected #{inspect(name)} to be a string"}
    end
  end

  defp iv_length(length) when length in [12, 16], do: {:ok, length}
  defp iv_length(_), do: {:error, "expected :iv_length to be 12 or 16"}

  defp unsafe_write(write) when is_boolean(write), do: {:ok, write}
  defp unsafe_write(_), do: {:error, "expected :unsafe_write to be a boolean"}
end
