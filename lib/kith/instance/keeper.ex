defmodule Kith.Instance.Keeper do
  @moduledoc false
  # Makes the instance known under its name once its database is ready, and keeps it known.
  use GenServer

  alias Kith.{Installation, Instance, Migration, Native, Options, Unlocked}

  # Milliseconds between two looks for accounts whose time is over.
  @sweep 10_000

  def start_link(argument), do: GenServer.start_link(__MODULE__, argument)

  def init({options, {vault, kms}, repo}) do
    instance = %Instance{
      name: options.name,
      repo: repo,
      vault: vault,
      kms: kms,
      options: options,
      stamps: :atomics.new(2, signed: false),
      unlocked: Unlocked.new()
    }

    # So that terminate/2 is called.
    Process.flag(:trap_exit, true)

    with :ok <- migrated(options, repo),
         {:ok, _found, instance} <- Installation.check(instance),
         {:ok, _} <- Instance.register(instance) do
      sweep_later()
      if kms, do: sweep_keys_later(instance)
      {:ok, instance}
    else
      {:error, reason} -> {:stop, reason}
    end
  end

  # The embedded database is ours alone. A repository is migrated by the application that owns it.
  defp migrated(%{repo: nil}, repo), do: Migration.run(repo)
  defp migrated(_options, repo), do: Migration.verify(repo)

  # An account whose time is over is locked when it is used next. Its key goes soon in any case.
  def handle_info(:sweep, instance) do
    Unlocked.sweep(instance)
    sweep_later()
    {:noreply, instance}
  end

  # A data key that nobody uses any more must not stay open.
  def handle_info(:sweep_keys, instance) do
    Native.kms_sweep(instance.vault)
    sweep_keys_later(instance)
    {:noreply, instance}
  end

  def handle_info(_other, instance), do: {:noreply, instance}

  defp sweep_later, do: Process.send_after(self(), :sweep, @sweep)

  defp sweep_keys_later(%{options: options}) do
    lifetime = Options.key_limits(options).lifetime
    Process.send_after(self(), :sweep_keys, max(500, div(lifetime, 4)))
  end

  # A copy that was made while this ran is older than what is left behind.
  def terminate(reason, instance)
      when reason in [:normal, :shutdown] or (is_tuple(reason) and elem(reason, 0) == :shutdown),
      do: Installation.refresh(instance)

  def terminate(_crash, _instance), do: :ok

  # Redacts what a crash report would print. A callback since OTP 25, of which Elixir 1.14 does not know yet: so no
  # function here says @impl.
  @doc false
  def format_status(status),
    do:
      Map.new(status, fn {key, value} -> {key, if(key == :state, do: :redacted, else: value)} end)
end
