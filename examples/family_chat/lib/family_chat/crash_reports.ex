defmodule FamilyChat.CrashReports do
  @moduledoc """
  Takes what people wrote out of the reports of processes that crashed.

  A report has the last message of the process, which for a page is what somebody has just typed, and its state. Exceptions
  and stack traces may have it in them, too. What stays is which exception it was, and where.

  A request that crashes is the same with a password or the words of a recovery kit. Each web server writes its report in another way, so there
  the exception is changed before the server sees it: `reraise/4`.
  """

  defmodule Hidden do
    @moduledoc "An exception of which only the kind is told."
    defexception [:message]
  end

  # They never have a value in them.
  @harmless [Kith.Error, Kith.SQLite.Error]

  @doc "Puts it before all that the application logs."
  def install, do: :logger.add_primary_filter(__MODULE__, {&__MODULE__.filter/2, []})

  @doc false
  def filter(%{msg: {:report, %{label: {:gen_server, :terminate}} = report}} = event, _options) do
    hidden =
      for key <- [:last_message, :state, :log],
          is_map_key(report, key),
          into: %{},
          do: {key, :hidden}

    report = report |> Map.merge(hidden) |> Map.replace(:reason, reason(report[:reason]))
    meta = Map.replace(event.meta, :crash_reason, reason(event.meta[:crash_reason]))
    %{event | msg: {:report, report}, meta: meta}
  end

  def filter(_event, _options), do: :ignore

  @doc "Raises again what a request raised, without what was in it."
  def reraise(_conn, :error, %Plug.Conn.WrapperError{} = error, _trace),
    do: reraise(error.conn, :error, error.reason, error.stack)

  def reraise(conn, kind, reason, trace) do
    trace = Enum.map(trace, &without_arguments/1)
    error = %Plug.Conn.WrapperError{conn: conn, kind: :error, stack: trace}
    Kernel.reraise(%{error | reason: hidden(kind, reason, trace)}, trace)
  end

  defp hidden(:error, reason, trace) do
    exception = Exception.normalize(:error, reason, trace)
    # One that is the browser's fault has its own answer, and is not reported.
    harmless? = exception.__struct__ in @harmless or Plug.Exception.status(exception) < 500
    if harmless?, do: exception, else: %Hidden{message: inspect(exception.__struct__)}
  end

  defp hidden(kind, _reason, _trace), do: %Hidden{message: "#{kind}"}

  defp reason({%module{} = exception, trace}) when is_list(trace) do
    what = if module in @harmless, do: exception, else: module
    {what, Enum.map(trace, &without_arguments/1)}
  end

  defp reason({what, trace}) when is_atom(what) and is_list(trace),
    do: {what, Enum.map(trace, &without_arguments/1)}

  # As {:badmatch, value}.
  defp reason({what, trace}) when is_tuple(what) and is_list(trace),
    do: reason({if(is_atom(elem(what, 0)), do: elem(what, 0), else: :hidden), trace})

  defp reason(reason) when is_atom(reason), do: reason
  defp reason({:shutdown, reason}) when is_atom(reason), do: {:shutdown, reason}
  defp reason(_reason), do: :hidden

  defp without_arguments({module, function, arguments, location}) when is_list(arguments),
    do: {module, function, length(arguments), location}

  defp without_arguments({function, arguments, location}) when is_list(arguments),
    do: {function, length(arguments), location}

  defp without_arguments(entry), do: entry
end
