defmodule Kith.Validation do
  @moduledoc false
  # Checks options against a schema once, with messages of one form: "expected :key to be X, got: Y".

  @type type ::
          :any
          | {:integer, Range.t()}
          | {:one_of, [term]}
          | {:module, keyword(arity)}
          | {:custom, (term -> :ok | {:error, String.t()})}

  @spec validate(keyword, keyword(type)) :: :ok | {:error, String.t()}
  def validate(options, schema) do
    if Keyword.keyword?(options) do
      Enum.reduce_while(options, :ok, fn {key, value}, :ok ->
        case check(key, value, schema) do
          :ok -> {:cont, :ok}
          {:error, message} -> {:halt, {:error, message}}
        end
      end)
    else
      # What was given instead may well hold a key.
      {:error, "expected options to be a keyword list"}
    end
  end

  @doc "The options, or an `ArgumentError` with that message."
  @spec validate!(keyword, keyword(type)) :: keyword
  def validate!(options, schema) do
    case validate(options, schema) do
      :ok -> options
      {:error, message} -> raise ArgumentError, message
    end
  end

  defp check(key, value, schema) do
    case Keyword.fetch(schema, key) do
      {:ok, type} -> type(type, key, value)
      :error -> {:error, unknown(key, Keyword.keys(schema))}
    end
  end

  defp type(:any, _key, _value), do: :ok

  defp type({:integer, first..last//_}, key, value) do
    if is_integer(value) and value in first..last,
      do: :ok,
      else: expected(key, "an integer from #{first} to #{last}", value)
  end

  defp type({:one_of, values}, key, value) do
    if value in values,
      do: :ok,
      else: expected(key, "one of #{Enum.map_join(values, ", ", &inspect/1)}", value)
  end

  defp type({:module, functions}, key, value) do
    wanted = Enum.map_join(functions, " and ", fn {name, arity} -> "#{name}/#{arity}" end)

    cond do
      not is_atom(value) or value in [nil, true, false] or not Code.ensure_loaded?(value) ->
        expected(key, "a module with #{wanted}", value)

      Enum.all?(functions, fn {name, arity} -> function_exported?(value, name, arity) end) ->
        :ok

      true ->
        expected(key, "a module with #{wanted}", value)
    end
  end

  defp type({:custom, fun}, _key, value), do: fun.(value)

  defp expected(key, wanted, value),
    do: {:error, "expected #{inspect(key)} to be #{wanted}, got: #{inspect(value)}"}

  defp unknown(key, known) do
    name = to_string(key)

    case Enum.max_by(known, &String.jaro_distance(name, Atom.to_string(&1)), fn -> nil end) do
      nearest when nearest != nil ->
        if String.jaro_distance(name, Atom.to_string(nearest)) > 0.7,
          do: "unknown option #{inspect(key)}, did you mean #{inspect(nearest)}?",
          else: unknown_among(key, known)

      nil ->
        unknown_among(key, known)
    end
  end

  defp unknown_among(key, known),
    do: "unknown option #{inspect(key)}, known ones are #{Enum.map_join(known, ", ", &inspect/1)}"
end
