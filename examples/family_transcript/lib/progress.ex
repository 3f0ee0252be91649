defmodule FamilyTranscript.Progress do
  @moduledoc false
  # A bar on a terminal; elsewhere a line at each quarter.

  @width 30

  def new(total), do: %{total: total, terminal?: terminal?(), shown: 0}

  def show(%{terminal?: true} = progress, done, note) do
    filled = div(done * @width, progress.total)
    bar = String.duplicate("█", filled) <> String.duplicate("░", @width - filled)
    room = max(columns() - @width - 24, 0)
    IO.write("\r  #{bar} #{done} of #{progress.total}  #{String.slice(note, 0, room)}\e[K")
    if done == progress.total, do: IO.write("\r\e[K")
    progress
  end

  def show(progress, done, _note) do
    quarter = div(4 * done, progress.total)
    if quarter > progress.shown, do: IO.puts("  #{done} of #{progress.total} messages")
    %{progress | shown: max(quarter, progress.shown)}
  end

  @doc "Prints a line that stays, above the bar."
  def say(%{terminal?: true}, text), do: IO.puts("\r\e[K  #{text}")
  def say(_progress, text), do: IO.puts("  #{text}")

  # The number of columns alone is that of the standard input.
  defp terminal?, do: IO.ANSI.enabled?() and match?({:ok, _}, :io.columns())

  defp columns do
    case :io.columns() do
      {:ok, columns} -> columns
      _ -> 80
    end
  end
end
