if Code.ensure_loaded?(Phoenix.LiveDashboard.PageBuilder) do
  defmodule Kith.LiveDashboard.Page do
    @moduledoc """
    A page of Phoenix LiveDashboard that shows what a `Kith.Monitor` has counted, and its alerts.

        live_dashboard "/dashboard",
          additional_pages: [kith: {Kith.LiveDashboard.Page, monitor: MyApp.Kith}]

      * `:monitor` - the name of the monitor. Required.
      * `:title` - what the menu says. Default `"Kith"`.

    It is refreshed as the dashboard is, and shows the node that is selected there. No user is named on it. The module is there
    where `phoenix_live_dashboard`, 0.8 or newer, is.
    """

    use Phoenix.LiveDashboard.PageBuilder

    alias Kith.Monitor

    # Another node may be gone.
    @timeout 5_000

    @operations [
      encrypt: "encrypt",
      group_encrypt: "encrypt_group",
      decrypt: "decrypt",
      establish: "begin sessions"
    ]

    @counts [
      panics: "Panics",
      restored: "Restored databases",
      redeliveries: "Answered out of the archive",
      reports: "Reported not to open",
      resends: "Sent again",
      prekeys_exhausted: "Begun without a one-time prekey",
      recipients: "Devices written to in groups",
      failed_recipients: "Of them not served",
      maintenance_failures: "Errors of maintenance"
    ]

    @impl true
    def init(options) do
      options = Keyword.validate!(options, [:monitor, title: "Kith"])

      if not Keyword.has_key?(options, :monitor),
        do: raise(ArgumentError, "expected :monitor to be given, the name of a Kith.Monitor")

      {:ok, Map.new(options)}
    end

    @impl true
    def menu_link(%{title: title}, _capabilities), do: {:ok, title}

    @impl true
    def mount(_params, %{monitor: monitor}, socket),
      do: {:ok, socket |> assign(:monitor, monitor) |> read()}

    @impl true
    def handle_refresh(socket), do: {:noreply, read(socket)}

    defp read(%{assigns: %{monitor: monitor, page: %{node: node}}} = socket) do
      {snapshot, alerts} =
        try do
          {ask(node, :snapshot, monitor), ask(node, :alerts, monitor)}
        catch
          # No such monitor, or no such node any more.
          _kind, _reason -> {nil, []}
        end

      assign(socket, snapshot: snapshot, alerts: alerts)
    end

    defp ask(node, function, monitor) when node == node(), do: apply(Monitor, function, [monitor])

    defp ask(node, function, monitor),
      do: :erpc.call(node, Monitor, function, [monitor], @timeout)

    @impl true
    def render(%{snapshot: nil} = assigns) do
      ~H"""
      <.card title="Kith">
        No monitor is running under the name <%= inspect(@monitor) %> on this node.
      </.card>
      """
    end

    def render(assigns) do
      assigns = assign(assigns, operations: @operations, counts: @counts)

      ~H"""
      <.row>
        <:col>
          <.card title="Database" inner_title={condition(@snapshot.health.store)}>
            <%= ms(@snapshot.health.store_latency) %>
          </.card>
        </:col>
        <:col>
          <.card title="Vault" inner_title={condition(@snapshot.health.vault)}>
            <%= ms(@snapshot.health.vault_latency) %>
          </.card>
        </:col>
        <:col>
          <.card title="Alerts" inner_title={"#{length(@alerts)} firing"}>
            <%= inspect(@snapshot.instance) %>, watched for <%= duration(@snapshot.uptime) %>,
            restored: <%= time(@snapshot.restored_at) %>
          </.card>
        </:col>
      </.row>

      <.list :if={@alerts != []} title="Alerts" header={["Severity", "Rule", "", "Since"]}>
        <tr :for={alert <- @alerts}>
          <td><%= alert.severity %></td>
          <td><%= alert.rule %></td>
          <td><%= alert.message %></td>
          <td><%= time(alert.since) %></td>
        </tr>
      </.list>

      <.list
        title={"The last #{duration(@snapshot.window)}"}
        header={["", "Calls", "P50", "P95", "P99", "Longest", "Errors", "Not ok"]}
      >
        <.operation
          :for={{key, name} <- @operations}
          name={name}
          statistics={@snapshot.operations[key].window}
        />
      </.list>

      <.list
        title={"Since #{time(@snapshot.started_at)}"}
        header={["", "Calls", "P50", "P95", "P99", "Longest", "Errors", "Not ok"]}
      >
        <.operation
          :for={{key, name} <- @operations}
          name={name}
          statistics={@snapshot.operations[key].total}
        />
      </.list>

      <.row>
        <:col>
          <.list title="What happened" header={["", "Lately", "In all"]}>
            <tr :for={{key, name} <- @counts}>
              <td><%= name %></td>
              <td><%= @snapshot.counts[key].window %></td>
              <td><%= @snapshot.counts[key].total %></td>
            </tr>
          </.list>
        </:col>
        <:col>
          <.list title="Prekeys" header={["", "Keys are here", "Keys are elsewhere"]}>
            <tr :for={{name, local, published} <- stock(@snapshot.prekeys)}>
              <td><%= name %></td>
              <td><%= local %></td>
              <td><%= published %></td>
            </tr>
          </.list>
        </:col>
      </.row>
      """
    end

    defp list(assigns) do
      ~H"""
      <.card_title title={@title} />
      <div class="card mb-4">
        <div class="card-body p-0">
          <table class="table table-hover mt-0">
            <thead>
              <tr>
                <th :for={name <- @header}><%= name %></th>
              </tr>
            </thead>
            <tbody><%= render_slot(@inner_block) %></tbody>
          </table>
        </div>
      </div>
      """
    end

    defp operation(assigns) do
      ~H"""
      <tr>
        <td><%= @name %></td>
        <td><%= @statistics.count %></td>
        <td><%= ms(@statistics.p50) %></td>
        <td><%= ms(@statistics.p95) %></td>
        <td><%= ms(@statistics.p99) %></td>
        <td><%= ms(@statistics.max) %></td>
        <td><%= percent(@statistics.error_rate) %></td>
        <td><%= reasons(@statistics.reasons) %></td>
      </tr>
      """
    end

    defp stock(%{local: nil, published: nil}),
      do: [{"maintenance has not looked here yet", "", ""}]

    defp stock(%{local: local, published: published}) do
      for {name, show} <- [
            {"Devices", & &1.devices},
            {"Low on one-time prekeys", & &1.low},
            {"Low after maintenance", &Map.get(&1, :low_left, "")},
            {"One-time prekeys", & &1.one_time},
            {"One-time Kyber prekeys", & &1.kyber_one_time},
            {"Age of the oldest signed prekey", &duration(&1.signed_age)},
            {"Age of the oldest of last resort", &duration(&1.last_resort_age)},
            {"Counted", &time(&1.at)}
          ] do
        {name, local && show.(local), published && show.(published)}
      end
    end

    defp condition(:ok), do: "well"
    defp condition(:unknown), do: "not asked yet"
    defp condition(:not_running), do: "not running"
    defp condition(reason), do: "#{reason}"

    defp reasons(reasons) do
      reasons
      |> Enum.sort_by(fn {_reason, count} -> -count end)
      |> Enum.map_join(", ", fn {reason, count} -> "#{count} #{reason}" end)
    end

    defp ms(nil), do: "-"
    defp ms(number), do: :erlang.float_to_binary(number * 1.0, decimals: 2) <> " ms"

    defp percent(share), do: :erlang.float_to_binary(share * 100.0, decimals: 2) <> " %"

    defp time(nil), do: "never"
    defp time(time), do: time |> DateTime.truncate(:second) |> DateTime.to_string()

    defp duration(seconds) when seconds < 120, do: "#{seconds} s"
    defp duration(seconds) when seconds < 7_200, do: "#{div(seconds, 60)} min"
    defp duration(seconds) when seconds < 172_800, do: "#{div(seconds, 3_600)} h"
    defp duration(seconds), do: "#{div(seconds, 86_400)} days"
  end
end
