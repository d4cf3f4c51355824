/** Hours of the day, in this host's time, in which no checkpoint begins. */

const MINUTES_PER_HOUR = 60;

export interface QuietHours {
  /** Minutes since midnight. */
  readonly from: number;
  /** Not after `from` when the hours go over midnight. */
  readonly to: number;
}

/** @param text such as 01:00-03:30. @returns undefined for what is none */
export function parseQuietHours(text: string): QuietHours | undefined {
  const found = /^(\d{2}):(\d{2})-(\d{2}):(\d{2})$/.exec(text);
  if (found === null) return undefined;
  const [fromHour = 0, fromMinute = 0, toHour = 0, toMinute = 0] = found.slice(1).map(Number);
  if (Math.max(fromHour, toHour) > 23 || Math.max(fromMinute, toMinute) > 59) return undefined;
  return { from: fromHour * MINUTES_PER_HOUR + fromMinute, to: toHour * MINUTES_PER_HOUR + toMinute };
}

export function isQuiet(hours: readonly QuietHours[], now: Date): boolean {
  const minute = now.getHours() * MINUTES_PER_HOUR + now.getMinutes();
  return hours.some(({ from, to }) =>
    from < to ? minute >= from && minute < to : minute >= from || minute < to,
  );
}
