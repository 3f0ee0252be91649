defmodule Kith.Store.Recoveries do
  @moduledoc false
  # signal_recoveries: how often one device reported what another sent, or sent it again, in the present window of time.

  alias Kith.Address
  alias Kith.Store.Repo

  @window 3_600_000

  @doc "Counts one more, unless the limit of the hour is reached."
  @spec allowed?(
          Repo.repo(),
          {Address.t(), Address.t(), atom},
          %{recovery_limit: integer},
          integer
        ) ::
          boolean
  def allowed?(repo, {{user, device}, {peer, peer_device}, kind}, %{recovery_limit: limit}, now) do
    # A window that is over begins anew; the count of one that is full stays, and no row is written.
    sql = """
    INSERT INTO kith.signal_recoveries
      (user_id, device_id, peer_id, peer_device_id, kind, window_started_at, count)
    VALUES ($1, $2, $3, $4, $5, $6, 1)
    ON CONFLICT (user_id, device_id, peer_id, peer_device_id, kind) DO UPDATE SET
      count = CASE WHEN signal_recoveries.window_started_at <= $7 THEN 1
        ELSE signal_recoveries.count + 1 END,
      window_started_at = CASE WHEN signal_recoveries.window_started_at <= $7
        THEN excluded.window_started_at ELSE signal_recoveries.window_started_at END
    WHERE signal_recoveries.window_started_at <= $7 OR signal_recoveries.count < $8
    """

    params = [user, device, peer, peer_device, Atom.to_string(kind), now, now - @window, limit]
    limit > 0 and Repo.execute(repo, sql, params) == 1
  end
end
