defmodule Kith.Interop.FamilyTest do
  # The demo as a test: a family of six, one of them the official client, a restart half-way, absences, and
  # everyone's log equal to the transcript at the end. The demo itself fails when anything is off.
  use ExUnit.Case, async: true

  @moduletag timeout: 240_000
  @demo "examples/family_transcript/run.exs"

  defp demo(arguments) do
    arguments = ["run", "--no-compile", "--no-deps-check", @demo | arguments]
    System.cmd("mix", arguments, stderr_to_stdout: true, env: [{"MIX_ENV", "test"}])
  end

  defp transcript!(text) do
    path = Path.join(System.tmp_dir!(), "transcript-#{System.unique_integer([:positive])}.txt")
    File.write!(path, text)
    on_exit(fn -> File.rm!(path) end)
    path
  end

  test "six people talk, one of them with the official client, and everyone's log equals the transcript" do
    assert {printed, 0} = demo(["--peer", "official", "--seed", "7"])
    assert printed =~ "uses the official client", printed
    last = printed |> String.trim() |> String.split("\n") |> List.last()
    assert last =~ ~r/\d+ messages/, printed
  end

  test "a bad line of a transcript is named with its number, before anything else" do
    path = transcript!("anna: hello\nben: hello\n\nthis is no line\n")
    assert {printed, 1} = demo([path])
    assert printed =~ "line 4"
    refute printed =~ "messages among"
  end
end
