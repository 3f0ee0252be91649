defmodule Kith.Testing.Search do
  @moduledoc false
  # Finds texts, in all forms in which a text is commonly written, and envelopes, in any term.

  alias Kith.Envelope

  # Shorter ones are found by chance in a long ciphertext.
  @min_size 5

  # A term inside a text inside a term, such as Base64 of JSON of Base64.
  @max_depth 4

  @typedoc "Where something was found, as one would write it behind the name of the term: `[:rows][0].body`."
  @type path :: String.t()

  @doc "The fewest bytes a text has to have to be looked for."
  def min_size, do: @min_size

  @doc "Where a term shows one of some texts, and in which form, or nil."
  @spec readable(term, [binary]) :: nil | {path, form :: String.t()}
  def readable(term, texts) do
    forms = texts |> Enum.flat_map(&forms/1) |> Enum.uniq_by(&elem(&1, 1))
    pattern = :binary.compile_pattern(Enum.map(forms, &elem(&1, 1)))

    first(term, [], fn leaf ->
      Enum.find_value(expand(leaf), fn bytes ->
        case :binary.match(bytes, pattern) do
          :nomatch -> nil
          {at, size} -> named(forms, binary_part(bytes, at, size))
        end
      end)
    end)
  end

  defp named(forms, bytes), do: Enum.find_value(forms, fn {form, b} -> b == bytes && form end)

  # The first leaf for which `fun` returns something, with its path. A list is also what its pieces are together.
  defp first(term, path, fun) do
    case term do
      binary when is_binary(binary) ->
        found(fun.(binary), path)

      bits when is_bitstring(bits) ->
        padding = 8 - rem(bit_size(bits), 8)
        found(fun.(<<bits::bitstring, 0::size(padding)>>), path)

      atom when is_atom(atom) ->
        found(fun.(Atom.to_string(atom)), path)

      list when is_list(list) ->
        first_in_list(list, 0, path, fun) || found(together(list, fun), path)

      tuple when is_tuple(tuple) ->
        tuple
        |> Tuple.to_list()
        |> Enum.with_index()
        |> Enum.find_value(fn {element, index} -> first(element, ["{#{index}}" | path], fun) end)

      %_{} = struct ->
        struct
        |> Map.from_struct()
        |> Enum.find_value(fn {key, value} -> first(value, [".#{key}" | path], fun) end)

      map when is_map(map) ->
        Enum.find_value(map, fn {key, value} ->
          first(key, [" key" | path], fun) || first(value, ["[#{key_name(key)}]" | path], fun)
        end)

      function when is_function(function) ->
        {:env, captured} = Function.info(function, :env)
        if is_list(captured), do: first(captured, [" captured" | path], fun)

      _number_or_reference ->
        nil
    end
  end

  defp found(nil, _path), do: nil
  defp found(what, path), do: {path |> Enum.reverse() |> Enum.join(), what}

  # A key may be what must not be printed.
  defp key_name(key) when is_atom(key) or is_integer(key), do: inspect(key)
  defp key_name(key) when is_binary(key) and byte_size(key) <= 32, do: inspect(key)
  defp key_name(_key), do: "…"

  defp first_in_list([], _index, _path, _fun), do: nil

  defp first_in_list([head | tail], index, path, fun),
    do: first(head, ["[#{index}]" | path], fun) || first_in_list(tail, index + 1, path, fun)

  # The end of an improper list.
  defp first_in_list(tail, index, path, fun), do: first(tail, ["[#{index}]" | path], fun)

  defp together([], _fun), do: nil

  defp together(list, fun) do
    case characters(list) do
      {:ok, binary} -> fun.(binary)
      :error -> nil
    end
  end

  defp characters(list) do
    {:ok, IO.iodata_to_binary(list)}
  rescue
    ArgumentError ->
      try do
        {:ok, List.to_string(list)}
      rescue
        _not_characters -> :error
      end
  end

  # A leaf, and what it holds where it is compressed or broken into lines.
  defp expand(bytes) do
    joined = String.replace(bytes, ["\r\n", "\n"], "")
    Enum.uniq([bytes, joined | List.wrap(inflated(bytes))])
  end

  defp inflated(<<0x1F, 0x8B, _::binary>> = bytes), do: attempt(fn -> :zlib.gunzip(bytes) end)
  defp inflated(<<0x78, _::binary>> = bytes), do: attempt(fn -> :zlib.uncompress(bytes) end)

  # A compressed external term, whose texts then stand in it as they are.
  defp inflated(<<131, 80, _::binary>> = bytes),
    do: attempt(fn -> bytes |> :erlang.binary_to_term([:safe]) |> :erlang.term_to_binary() end)

  defp inflated(_bytes), do: nil

  defp attempt(fun) do
    fun.()
  rescue
    _not_compressed -> nil
  end

  @doc "The forms in which a text is looked for: `{what it is called, bytes}`."
  @spec forms(binary) :: [{String.t(), binary}]
  def forms(text) do
    written = [
      {"as it is", text},
      {"escaped for JSON", json(text)},
      {"escaped for JSON", ascii(text)}
    ]

    encoded =
      for {_, text} <- written, {form, bytes} <- base64(text) ++ hex(text), do: {form, bytes}

    others = [
      {"as inspect/1 prints it", printed(text)},
      {"as a list of bytes", Enum.join(:binary.bin_to_list(text), ", ")},
      {"as a list of bytes", Enum.join(:binary.bin_to_list(text), ",")},
      {"escaped for HTML", html(text)},
      {"escaped for a URL", URI.encode(text)},
      {"escaped for a URL", URI.encode_www_form(text)},
      {"escaped for a URL", URI.encode(text, &URI.char_unreserved?/1)},
      {"in UTF-16", utf16(text, :little)},
      {"in UTF-16", utf16(text, :big)}
    ]

    Enum.filter(written ++ encoded ++ others, fn {_, bytes} ->
      byte_size(bytes) >= @min_size - 1
    end)
  end

  @escapes %{
    ?" => "\\\"",
    ?\\ => "\\\\",
    ?\n => "\\n",
    ?\r => "\\r",
    ?\t => "\\t",
    ?\b => "\\b",
    ?\f => "\\f"
  }

  # As encoders of JSON do it that leave letters as they are.
  defp json(text) do
    for <<byte <- text>>, into: "" do
      cond do
        escape = @escapes[byte] -> escape
        byte < 0x20 -> "\\u00" <> Base.encode16(<<byte>>, case: :lower)
        true -> <<byte>>
      end
    end
  end

  # As those do it that write nothing but ASCII.
  defp ascii(text) do
    if String.valid?(text) do
      for <<character::utf8 <- text>>, into: "" do
        if character < 0x80,
          do: json(<<character>>),
          else: for(<<(unit::16 <- <<character::utf16>>)>>, into: "", do: "\\u" <> hex4(unit))
      end
    else
      json(text)
    end
  end

  defp hex4(unit), do: Base.encode16(<<unit::16>>, case: :lower)

  # Of a text that stands somewhere inside of what is encoded: three ways to fall on groups of three bytes, each without
  # the characters that depend on its neighbours.
  defp base64(text) do
    for offset <- 0..2 do
      bits = (offset + byte_size(text)) * 8
      first = div(offset * 8 + 5, 6)
      whole = Base.encode64(:binary.copy(<<0>>, offset) <> text, padding: false)
      {"in Base64", binary_part(whole, first, div(bits, 6) - first)}
    end
    |> Enum.flat_map(fn {form, standard} ->
      [{form, standard}, {form, standard |> String.replace("+", "-") |> String.replace("/", "_")}]
    end)
  end

  defp hex(text),
    do:
      for(letters <- [:lower, :upper], do: {"in hexadecimal", Base.encode16(text, case: letters)})

  defp printed(text),
    do: text |> inspect(limit: :infinity, printable_limit: :infinity) |> String.trim("\"")

  defp html(text) do
    for <<byte <- text>>, into: "" do
      case byte do
        ?& -> "&amp;"
        ?< -> "&lt;"
        ?> -> "&gt;"
        ?" -> "&quot;"
        ?' -> "&#39;"
        byte -> <<byte>>
      end
    end
  end

  defp utf16(text, order) do
    case :unicode.characters_to_binary(text, :utf8, {:utf16, order}) do
      converted when is_binary(converted) -> converted
      _no_text -> ""
    end
  end

  @doc "All envelopes in a term, in any of their forms, those that are there twice once. Reports are none."
  @spec envelopes(term) :: [Envelope.t()]
  def envelopes(term) do
    term
    |> collect(0)
    |> Enum.reject(&(&1.type == :report))
    |> Enum.uniq_by(&Envelope.to_binary/1)
  end

  defp collect(_term, depth) when depth > @max_depth, do: []
  defp collect(%Envelope{} = envelope, _depth), do: [envelope]

  defp collect(binary, depth) when is_binary(binary) do
    case Envelope.from_binary(binary) do
      {:ok, envelope} -> [envelope]
      {:error, _} -> binary |> decoded() |> Enum.flat_map(&collect(&1, depth + 1))
    end
  end

  defp collect(list, depth) when is_list(list) do
    case Enum.flat_map(proper(list), &collect(&1, depth)) do
      [] ->
        with {:ok, <<_, _::binary>> = binary} <- characters(list),
             do: collect(binary, depth),
             else: (_none -> [])

      found ->
        found
    end
  end

  defp collect(tuple, depth) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> Enum.flat_map(&collect(&1, depth))

  defp collect(%_{} = struct, depth), do: struct |> Map.from_struct() |> collect(depth)

  defp collect(%{} = map, depth) do
    case Envelope.from_map(map) do
      {:ok, envelope} -> [envelope]
      {:error, _} -> Enum.flat_map(map, fn {_key, value} -> collect(value, depth) end)
    end
  end

  defp collect(_other, _depth), do: []

  defp proper([head | tail]), do: [head | proper(tail)]
  defp proper([]), do: []
  defp proper(tail), do: [tail]

  # What a binary may say in another form.
  defp decoded(binary) do
    for decode <- [
          &Base.decode64/1,
          &Base.url_decode64(&1, padding: false),
          &hex_decoded/1,
          &json_decoded/1
        ],
        {:ok, term} <- [decode.(binary)],
        do: term
  end

  defp hex_decoded("\\x" <> digits), do: Base.decode16(digits, case: :mixed)
  defp hex_decoded(digits), do: Base.decode16(digits, case: :mixed)

  # Whichever library the application has.
  defp json_decoded(<<first, _::binary>> = text) when first in [?{, ?[, ?"] do
    case Enum.find(
           [JSON, Jason],
           &(Code.ensure_loaded?(&1) and function_exported?(&1, :decode, 1))
         ) do
      nil -> :error
      library -> library.decode(text)
    end
  end

  defp json_decoded(_text), do: :error
end
