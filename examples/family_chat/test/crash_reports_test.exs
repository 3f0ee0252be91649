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

  describe "a request that crashed" do
    @password "correct horse battery"

    for {what, crash} <- [
          clause: quote(do: &__MODULE__.number/1),
          match: quote(do: fn password -> {:ok, _} = Function.identity({:error, password}) end),
          message: quote(do: fn password -> raise ArgumentError, "not " <> password end),
          exit: quote(do: fn password -> exit({:not, password}) end),
          throw: quote(do: fn password -> throw(password) end)
        ] do
      test "does not say what was in it (#{what})" do
        conn = %Plug.Conn{}

        {kind, error, trace} =
          try do
            unquote(crash).(@password)
          catch
            kind, reason -> caught(conn, kind, reason, __STACKTRACE__)
          end

        assert %Plug.Conn.WrapperError{conn: ^conn, reason: %FamilyChat.CrashReports.Hidden{}} =
                 error

        for term <- [error, trace], do: refute(inspect(term, limit: :infinity) =~ @password)
        refute Exception.format(kind, error.reason, trace) =~ @password
        # Where it was is told.
        assert Enum.any?(trace, &(elem(&1, 0) == __MODULE__))
      end
    end

    test "for a fault of the browser has the answer of that" do
      error = %Plug.CSRFProtection.InvalidCSRFTokenError{}

      assert {:error, %{reason: ^error}, _} =
               caught(%Plug.Conn{}, :error, error, [{__MODULE__, :number, ["x"], []}])
    end

    def number(number) when is_integer(number), do: number

    defp caught(conn, kind, reason, trace) do
      FamilyChat.CrashReports.reraise(conn, kind, reason, trace)
    catch
      kind, reason -> {kind, reason, __STACKTRACE__}
    end
  end
end
