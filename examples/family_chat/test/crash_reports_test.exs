defmodule FamilyChat.CrashReportsTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  defmodule Page do
    use GenServer
    def init(text), do: {:ok, text}
    def handle_call({:send, text}, _from, _state), do: raise(ArgumentError, "cannot send #{text}")
  end

  test "the report of a page that crashed does not say what was written" do
    FamilyChat.CrashReports.install()
    {:ok, page} = GenServer.start(Page, "a text in its state")

    log =
      capture_log(fn ->
        catch_exit(GenServer.call(page, {:send, "a text that was just typed"}))
        ref = Process.monitor(page)
        assert_receive {:DOWN, ^ref, _, _, _}
        Logger.flush()
      end)

    assert log =~ "ArgumentError"
    refute log =~ "just typed"
    refute log =~ "in its state"
  end
end
