defmodule Kith.Telemetry.Log do
  @moduledoc false
  # The handler of Kith.Telemetry.attach_logger/1.

  require Logger

  alias Kith.{Telemetry, Validation}

  @compile {:no_warn_undefined, :telemetry}

  @levels [:error, :warning, :info, :debug]

  @errors [
    [:kith, :nif, :panic],
    [:kith, :health, :check],
    [:kith, :session, :encrypt, :stop],
    [:kith, :session, :encrypt, :exception],
    [:kith, :group, :encrypt, :stop],
    [:kith, :group, :encrypt, :exception],
    [:kith, :session, :decrypt, :stop],
    [:kith, :session, :decrypt, :exception]
  ]

  @events %{
    error: @errors,
    warning: [[:kith, :prekeys, :claim, :stop], [:kith, :backup, :unwrap, :stop]],
    info: [
      [:kith, :session, :recover, :stop],
      [:kith, :session, :resend, :stop],
      [:kith, :sessions, :expire],
      [:kith, :archive, :redelivery],
      [:kith, :backup, :export, :stop],
      [:kith, :backup, :restore, :stop]
    ],
    debug: [[:kith, :session, :establish, :stop]]
  }

  def attach(options) do
    with {:error, message} <- Validation.validate(options, schema()),
         do: raise(ArgumentError, message)

    if not Telemetry.available?() do
      raise ArgumentError,
            "Kith.Telemetry.attach_logger/1 listens to events of :telemetry, which is not there: add " <>
              "{:telemetry, \"~> 1.0\"} to your dependencies"
    end

    options = Map.merge(%{level: :info, slow: 100, user_ids: false}, Map.new(options))
    events = @levels |> Enum.take(rank(options.level)) |> Enum.flat_map(&@events[&1])
    slow = System.convert_time_unit(options.slow, :millisecond, :native)
    :telemetry.attach_many(id(options), events, &__MODULE__.handle/4, %{options | slow: slow})
  end

  def detach(options) do
    with {:error, message} <- Validation.validate(options, instance: :any),
         do: raise(ArgumentError, message)

    if Telemetry.available?(),
      do: :telemetry.detach(id(Map.new(options))),
      else: {:error, :not_found}
  end

  defp id(%{instance: instance}), do: {__MODULE__, {:instance, instance}}
  defp id(_options), do: {__MODULE__, :all}

  defp schema do
    [
      instance: :any,
      level: {:one_of, @levels},
      slow: {:integer, 1..3_600_000},
      user_ids: {:one_of, [true, false]}
    ]
  end

  defp rank(level), do: Enum.find_index(@levels, &(&1 == level)) + 1

  # A handler that raises is detached.
  def handle(event, measurements, metadata, options) do
    if of_instance?(metadata, options) do
      with {level, text} <- line(event, measurements, metadata, options),
           true <- rank(level) <= rank(options.level) do
        Logger.log(level, fn ->
          ["Kith ", inspect(metadata.instance), ": ", text, people(metadata, options)]
        end)
      end
    end

    :ok
  catch
    _kind, _reason -> :ok
  end

  defp of_instance?(%{instance: instance}, %{instance: wanted}), do: instance == wanted
  defp of_instance?(_metadata, _options), do: true

  defp line([:kith, :nif, :panic], _measurements, %{function: function}, _options),
    do: {:error, "the engine panicked in #{function}; nothing was changed"}

  defp line([:kith, :health, :check], _measurements, %{result: :ok}, _options), do: nil

  defp line([:kith, :health, :check], measurements, metadata, _options) do
    wrong =
      for {name, reason, duration} <- [
            {"the database does not answer", metadata.store_reason, measurements.store_duration},
            {"data keys do not open", metadata.vault_reason, measurements.vault_duration}
          ],
          reason != nil,
          do: "#{name}: #{reason}, after #{ms(duration)} ms"

    {:error, Enum.join(wrong, "; ")}
  end

  defp line([:kith, _, operation, :exception], %{duration: duration}, _metadata, _options)
       when operation in [:encrypt, :decrypt],
       do: {:error, "#{operation} raised after #{ms(duration)} ms"}

  defp line([:kith, group, operation, :stop], measurements, metadata, options)
       when operation in [:encrypt, :decrypt],
       do: operation(called(group, operation), measurements, metadata, options)

  defp line([:kith, :prekeys, :claim, :stop], %{count: 0}, %{result: :ok}, _options),
    do: {:warning, "a session begins without a one-time prekey, as there is none left"}

  defp line([:kith, :session, :recover, :stop], %{reports: reports}, %{result: :ok} = m, _options)
       when reports > 0,
       do: {:info, "a message that did not open (#{m.cause}) was reported to its sender"}

  defp line(
         [:kith, :session, :resend, :stop],
         %{messages: messages},
         %{result: :ok} = m,
         _options
       ) do
    renewed = if m.renewed, do: ", and the next message starts a new session", else: ""
    {:info, "a message was reported not to open: #{messages} sent again#{renewed}"}
  end

  defp line([:kith, :sessions, :expire], %{age: age}, _metadata, _options),
    do: {:info, "a session in which nobody answered for #{age} s was put away"}

  defp line([:kith, :archive, :redelivery], _measurements, %{reason: reason}, _options),
    do: {:info, "a message was delivered again (#{reason}), and answered out of the archive"}

  defp line([:kith, :backup, :unwrap, :stop], _measurements, %{result: :ok}, _options),
    do: {:warning, "security: a recovery key in escrow was unwrapped"}

  defp line([:kith, :backup, :unwrap, :stop], _measurements, %{reason: reason}, _options),
    do: {:warning, "security: a recovery key in escrow was asked for and refused (#{reason})"}

  defp line([:kith, :backup, operation, :stop], measurements, metadata, _options) do
    %{size: size, messages: messages} = measurements
    told = if operation == :export, do: "backed up", else: "restored"

    case metadata do
      %{result: :ok} ->
        {:info, "an account was #{told}: #{size} bytes, #{messages} messages"}

      %{reason: reason} ->
        {:info, "an account was not #{told} (#{reason || :not_read_to_its_end})"}
    end
  end

  defp line([:kith, :session, :establish, :stop], %{sessions: sessions}, metadata, _options)
       when sessions > 0,
       do: {:debug, "#{sessions} sessions were begun, as the #{metadata.role}"}

  defp line(_event, _measurements, _metadata, _options), do: nil

  defp operation("decrypt", _measurements, %{reason: reason}, _options)
       when reason in [:tampered, :untrusted_identity],
       do: {:warning, "security: decrypt answered #{reason}"}

  defp operation(called, %{duration: duration}, %{reason: :storage}, _options),
    do: {:error, "#{called} failed: the database did, after #{ms(duration)} ms"}

  defp operation(called, %{duration: duration}, %{reason: :unavailable}, _options),
    do: {:error, "#{called} failed: the key service does not answer, after #{ms(duration)} ms"}

  defp operation(called, _measurements, %{reason: :corrupted_state}, _options),
    do: {:warning, "#{called} failed: a sealed row does not open (corrupted_state)"}

  defp operation(called, %{duration: duration}, _metadata, %{slow: slow})
       when duration >= slow and called != "encrypt_group",
       do: {:warning, "slow: #{called} took #{ms(duration)} ms"}

  defp operation(called, %{duration: duration}, %{result: result, reason: reason}, _options),
    do: {:debug, "#{called} #{reason || result} in #{ms(duration)} ms"}

  defp called(:group, :encrypt), do: "encrypt_group"
  defp called(:session, operation), do: "#{operation}"

  # Ids are any text: inspected, so that none of them ends a line.
  defp people(%{user_id: user, device_id: device} = metadata, %{user_ids: true}) do
    peer =
      case metadata do
        %{peer_id: peer, peer_device_id: device} when peer != nil ->
          [", the other side ", address(peer, device)]

        _ ->
          []
      end

    [" (", address(user, device), peer, ")"]
  end

  defp people(%{user_id: user}, %{user_ids: true}), do: [" (", inspect(user), ")"]
  defp people(_metadata, _options), do: []

  defp address(user, nil), do: inspect(user)
  defp address(user, device), do: [inspect(user), "/", inspect(device)]

  defp ms(duration) do
    us = System.convert_time_unit(duration, :native, :microsecond)
    :erlang.float_to_binary(us / 1_000, decimals: 1)
  end
end
