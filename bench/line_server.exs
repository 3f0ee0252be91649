defmodule Bench.LineServer do
  # A program that answers one line with one line.

  defstruct [:port]

  def start(program, arguments, directory) do
    executable = System.find_executable(program) || raise "#{program} is needed and was not found"

    options = [:binary, :exit_status, line: 1_000_000, args: arguments, cd: directory]
    %__MODULE__{port: Port.open({:spawn_executable, executable}, options)}
  end

  def ask(%__MODULE__{port: port}, line) do
    Port.command(port, [line, ?\n])
    String.split(answer(port, []))
  end

  def sample(server, operation, people, samples) do
    server |> ask("#{operation} #{people} #{samples}") |> Enum.map(&String.to_integer/1)
  end

  defp answer(port, parts) do
    receive do
      {^port, {:data, {:noeol, part}}} -> answer(port, [parts, part])
      {^port, {:data, {:eol, part}}} -> IO.iodata_to_binary([parts, part])
      {^port, {:exit_status, status}} -> raise "a benchmark program ended with #{status}"
    end
  end
end
