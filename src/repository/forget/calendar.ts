/**
 * Hours, days, weeks and months of a time zone as keys: two moments have the same key when they lie in the
 * same one.
 */

import { CheckpointError } from '../../errors.js';

export type Period = 'hourly' | 'daily' | 'weekly' | 'monthly';

const DAY_MS = 86_400_000;
/** 1970-01-01 was a Thursday, three days into a week. */
const EPOCH_WEEKDAY = 3;

interface LocalTime {
  readonly year: number;
  readonly month: number;
  readonly day: number;
  readonly hour: number;
  /** Such as GMT+02:00. */
  readonly offset: string;
}

export class Calendar {
  readonly #format: Intl.DateTimeFormat;

  /** @param timeZone such as Europe/Berlin; default: that of the process (TZ, or the host's) */
  constructor(timeZone?: string) {
    this.#format = new Intl.DateTimeFormat('en-GB', {
      timeZone,
      hourCycle: 'h23',
      year: 'numeric',
      month: 'numeric',
      day: 'numeric',
      hour: 'numeric',
      timeZoneName: 'longOffset',
    });
  }

  keyOf(period: Period, timeMs: number): string {
    const { year, month, day, hour, offset } = this.#localTime(timeMs);
    switch (period) {
      case 'hourly':
        // The key has the offset in it, so that the hour that comes twice when clocks are put back is two
        // hours.
        return `${year}-${month}-${day} ${hour} ${offset}`;
      case 'daily':
        return `${year}-${month}-${day}`;
      case 'weekly':
        // Weeks begin on Monday, as in ISO 8601.
        return `week ${Math.floor((Date.UTC(year, month - 1, day) / DAY_MS + EPOCH_WEEKDAY) / 7)}`;
      case 'monthly':
        return `${year}-${month}`;
    }
  }

  #localTime(timeMs: number): LocalTime {
    const parts = new Map(this.#format.formatToParts(timeMs).map(({ type, value }) => [type, value]));
    const number = (type: Intl.DateTimeFormatPartTypes): number => Number(parts.get(type));
    return {
      year: number('year'),
      month: number('month'),
      day: number('day'),
      hour: number('hour'),
      offset: parts.get('timeZoneName') ?? '',
    };
  }
}

export interface Duration {
  /** The duration as it was written. */
  readonly text: string;
  readonly months: number;
  readonly ms: number;
}

/** Parses years, months, days and hours as restic writes them: 1y6m, 14d, 36h. @throws USAGE */
export function parseDuration(text: string): Duration {
  const match = /^(?:(\d{1,4})y)?(?:(\d{1,5})m)?(?:(\d{1,6})d)?(?:(\d{1,7})h)?$/.exec(text);
  const [years, months, days, hours] = [1, 2, 3, 4].map((i) => Number(match?.[i] ?? 0));
  const duration = { text, months: years! * 12 + months!, ms: days! * DAY_MS + hours! * 3_600_000 };
  if (match !== null && duration.months + duration.ms > 0) return duration;
  throw new CheckpointError('USAGE', `"${text}" is no length of time`, {
    hint: 'years, months, days and hours, in this order: 2y, 6m14d, 36h',
  });
}

/**
 * The moment that lies `duration` before `timeMs`. A month before the 31st is the last day of a shorter
 * month.
 */
export function before(timeMs: number, { months, ms }: Duration): number {
  const at = new Date(timeMs);
  const day = at.getUTCDate();
  at.setUTCDate(1);
  at.setUTCMonth(at.getUTCMonth() - months);
  const lastDay = new Date(Date.UTC(at.getUTCFullYear(), at.getUTCMonth() + 1, 0)).getUTCDate();
  at.setUTCDate(Math.min(day, lastDay));
  return at.getTime() - ms;
}
