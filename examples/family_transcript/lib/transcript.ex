defmodule FamilyTranscript.Transcript do
  @moduledoc """
  A conversation as a text file: one `name: text` per line, in UTF-8.

  Empty lines and lines that begin with `#` are left out.
  """

  defmodule Line do
    @moduledoc false
    @enforce_keys [:number, :from, :text]
    defstruct [:number, :from, :text]
  end

  # Four bytes of the longest plaintext are the line's number.
  @max_text 65_536 - 4
  @max_name 64

  @doc "Reads a file. Returns its lines and the people in it, in the order in which they first speak."
  def read(path) do
    with {:ok, bytes} <- read_file(path),
         {:ok, lines} <- parse(bytes, path) do
      case lines |> Enum.map(& &1.from) |> Enum.uniq() do
        [_, _ | _] = people -> {:ok, lines, people}
        _ -> {:error, "#{path}: a conversation needs two people or more"}
      end
    end
  end

  @doc "Parses lines, or names the first bad one by its number in the file."
  def parse(bytes, path) do
    bytes
    |> String.trim_leading("\uFEFF")
    |> String.split(["\r\n", "\n"])
    |> Enum.with_index(1)
    |> Enum.reduce_while({[], 1}, fn {line, place}, {lines, number} ->
      case parse_line(line) do
        :skip -> {:cont, {lines, number}}
        {:ok, from, text} -> {:cont, {[line(number, from, text) | lines], number + 1}}
        {:error, reason} -> {:halt, {:error, "#{path}, line #{place}: #{reason}"}}
      end
    end)
    |> case do
      {:error, message} -> {:error, message}
      {lines, _number} -> {:ok, Enum.reverse(lines)}
    end
  end

  defp line(number, from, text), do: %Line{number: number, from: from, text: text}

  defp read_file(path) do
    with {:error, reason} <- File.read(path),
         do: {:error, "#{path}: #{:file.format_error(reason)}"}
  end

  defp parse_line(line) do
    cond do
      not String.valid?(line) -> {:error, "expected UTF-8"}
      String.trim(line) == "" or String.starts_with?(line, "#") -> :skip
      true -> line |> String.split(": ", parts: 2) |> Enum.map(&String.trim/1) |> named()
    end
  end

  defp named([name, text]) do
    cond do
      name == "" or text == "" -> wrong()
      byte_size(name) > @max_name -> {:error, "expected a name of at most #{@max_name} bytes"}
      not String.printable?(name) -> {:error, "expected a name of printable characters"}
      byte_size(text) > @max_text -> {:error, "expected a text of at most #{@max_text} bytes"}
      true -> {:ok, name, text}
    end
  end

  defp named(_), do: wrong()

  defp wrong, do: {:error, "expected `name: text`"}
end
